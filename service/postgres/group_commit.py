"""Group commit: calls that arrive while one is under way wait, and go together in the next.

Knows neither what the calls are nor a database. No timer: a call that comes alone starts at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from service.errors import Unavailable

Call = TypeVar("Call")
Answer = TypeVar("Answer")


class GroupCommit(Generic[Call, Answer]):
    """One group at a time, in the order in which its calls came. Use it in one event loop only.

    `commit` answers a group call by call, in order; an exception among its answers is that one call's. When it raises
    `Unavailable` it speaks for the whole group, and for all who wait behind it: nothing piles up. When it raises
    anything else, one call may be to blame, so each is made alone; it must have left nothing half done.
    """

    def __init__(
        self, commit: Callable[[Sequence[Call]], Awaitable[Sequence[Answer | Exception]]], *, most: int
    ) -> None:
        self._commit = commit
        self._most = most  # calls in a group
        self._waiting: deque[tuple[Call, asyncio.Future[Answer]]] = deque()
        self._worker: asyncio.Task[None] | None = None  # None: nothing is under way

    async def submit(self, call: Call) -> Answer:
        """The call's own answer, or its own error. A caller that is cancelled before its group starts takes it back."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Returns when every call has its answer."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        group: list[tuple[Call, asyncio.Future[Answer]]] = []
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                group = [(call, future) for call, future in group if not future.cancelled()]
                try:
                    await self._settle(group)
                except Unavailable as error:
                    _fail((*group, *self._waiting), error)
                    self._waiting.clear()
        finally:
            self._worker = None
            for _, future in (*group, *self._waiting):  # whose answer would never come, for the loop is being ended
                future.cancel()
            self._waiting.clear()

    async def _settle(self, group: Sequence[tuple[Call, asyncio.Future[Answer]]]) -> None:
        """Gives each of the group its answer. Raises `Unavailable` for those that have none then."""
        if not group:
            return
        try:
            answers = await self._commit([call for call, _ in group])
        except Unavailable:
            raise
        except Exception as error:
            if len(group) == 1:
                _fail(group, error)
            else:
                for alone in group:
                    await self._settle([alone])
            return
        for (call, future), answer in zip(group, answers, strict=True):
            if isinstance(answer, Exception):
                _fail([(call, future)], answer)
            elif not future.done():  # else its caller has gone
                future.set_result(answer)


def _fail(calls: Iterable[tuple[object, asyncio.Future[Answer]]], error: Exception) -> None:
    for _, future in calls:
        if not future.done():
            future.set_exception(error)
