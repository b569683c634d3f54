"""An answer on its way to its client as server-sent events: marked where nobody can vote on it, ended where it breaks.

A whole answer that cannot be rated says so in its body, a stream in its last chunk before `[DONE]`: whether the record
is durable is known only when the last token is. Clients that know nothing of the field pass over it. A stream that
breaks off ends with one `error` event and without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from serving.errors import EngineFailed, RequestRefused
from serving.turn import Turn

log = logging.getLogger(__name__)

UNRATEABLE = {"rateable": False}
_DONE = "data: [DONE]\n\n"
_DATA, _ERROR = "data: ", 'data: {"error"'
_NOTHING_MORE = {"index": 0, "delta": {}, "finish_reason": None}


class Reply:
    """The stream of one turn, which it ends when it ends, fails, is closed or is dropped."""

    def __init__(self, events: AsyncIterator[str], turn: Turn) -> None:
        self._turn = turn
        self._events = _told(events, turn)
        self._first: str | None = None
        self._reader: asyncio.Task[Any] | None = None  # who waits for the next event now
        self._closing: asyncio.Task[None] | None = None
        self._over = False
        cut = weakref.WeakMethod(self._cut)  # else the turn's timer would keep a stream that everybody has dropped
        turn.on_late = lambda: alive() if (alive := cut()) else None

    async def begin(self) -> None:
        """Wait for the first event, so that what fails before it is no stream yet. Raises what the engine raises,
        `RequestRefused` and `DeadlineExceeded`."""
        if self._turn.late is not None:  # while the prompt was being read: the engine has not begun
            await self.aclose()
            raise self._turn.late
        self._first = await self._next()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._first is not None:
            event, self._first = self._first, None
            return event
        if self._over:
            raise StopAsyncIteration
        if self._closing is not None:  # time was up while the client did not read
            self._over = True
            return self._late()
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            if error is self._turn.late:
                return self._late()
            log.exception("the answer %s broke off", self._turn.completion_id)
            return _error("The answer broke off on our side; the log has it.", "server_error", EngineFailed.code)

    async def aclose(self) -> None:
        self._over, self._first = True, None
        await self._events.aclose()
        self._turn.end()

    async def _next(self) -> str:
        self._reader = asyncio.current_task()
        try:
            return await anext(self._events)
        except BaseException as error:
            self._over = True
            self._turn.end()
            if self._turn.late is not None and isinstance(error, asyncio.CancelledError) and not _cancelled_too():
                raise self._turn.late from None
            raise
        finally:
            self._reader = None

    def _cut(self) -> None:
        """Time is up. Closing it makes the engine let go, also where the client does not read."""
        if self._reader is not None:
            self._reader.cancel()
        elif not self._over:
            self._closing = asyncio.ensure_future(self._events.aclose())

    def _late(self) -> str:
        assert self._turn.late is not None
        return _error(str(self._turn.late), "timeout_error", self._turn.late.code)

    def __del__(self) -> None:
        self._turn.end()


def unrateable(body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer that nobody can vote on."""
    return body | UNRATEABLE


async def _told(events: AsyncIterator[str], turn: Turn) -> AsyncGenerator[str, None]:
    """The same events without delay; only those behind a record that failed wait for one another, to mark the last.
    Raises what an error among them says."""
    held, last = "", ""
    try:
        async for event in events:
            if event.startswith(_ERROR):
                raise _failure(event)
            if event == _DONE and not turn.durable:
                held = _mark(held) if held else _mark(last, choices=[_NOTHING_MORE], usage=None)
            if held:
                yield held
                held = ""
            if turn.durable is False and event != _DONE:
                held = event
            else:
                yield event
            last = event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def _failure(event: str) -> Exception:
    """What the engine says in the place of an answer; the status is its `code`."""
    error = json.loads(event.removeprefix(_DATA))["error"]
    status = error.get("code")
    if isinstance(status, int) and 400 <= status < 500:
        return RequestRefused.by_engine(error["message"], status=status, param=error.get("param"))
    return EngineFailed(error["message"])


def _cancelled_too() -> bool:
    """Takes back the cancellation that was ours. Did somebody else cancel as well?"""
    task = asyncio.current_task()
    return task is None or task.uncancel() > 0


def _error(message: str, type: str, code: str) -> str:
    """OpenAI's error shape, as one event."""
    return f"data: {json.dumps({'error': {'message': message, 'type': type, 'param': None, 'code': code}})}\n\n"


def _mark(event: str, **instead: Any) -> str:
    return f"data: {json.dumps(json.loads(event.removeprefix(_DATA)) | instead | UNRATEABLE)}\n\n"
