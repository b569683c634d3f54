"""Who may go to the engine now, who waits, and who is turned away at once: a bounded queue. Knows no HTTP, no engine.

So many answers are worked on at a time, and so many wait, first come, first served; a request for n answers counts n
times. Whoever comes later is told when to try again. Under overload, those who were let in are then answered about as
fast as ever, instead of all of them slowly.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.errors import Overloaded

LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1, 30
REMEMBERED = 64  # requests that left, from which the rate is estimated
RATE_SECONDS = 30.0  # those that left before say nothing of the rate any more


class Place:
    """Room in the engine for the answers to one request, until it is given back; giving it back twice does it once."""

    def __init__(self, admission: Admission, answers: int) -> None:
        self._admission = admission
        self._answers = answers
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._admission._leave(self._answers)


@dataclass(eq=False)
class _Waiting:
    answers: int
    called: asyncio.Future[Place] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """One per replica; use it in one event loop only."""

    def __init__(
        self,
        places: int,
        *,
        max_waiting: int,
        max_waiting_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._max_waiting = max_waiting
        self._max_waiting_seconds = max_waiting_seconds
        self._clock = clock
        self._running = 0  # answers
        self._queue: deque[_Waiting] = deque()
        self._left: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)  # (when, answers)

    @property
    def running(self) -> int:
        """Answers."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests."""
        return len(self._queue)

    async def enter(self, answers: int) -> Place:
        """A place for so many answers. Raises `Overloaded`: at once where the queue is full, else after its time."""
        if not self._queue and self._fits(answers):
            return self._take(answers)
        waiting = self._answers_waiting()
        if waiting + answers > self._max_waiting:
            raise self._overloaded(f"{self._running} answers are being written and {waiting} wait", answers)
        one = _Waiting(answers)
        self._queue.append(one)
        try:
            async with asyncio.timeout(self._max_waiting_seconds):
                return await one.called
        except TimeoutError as error:
            self._give_up(one)
            raise self._overloaded(
                f"no place came free within {self._max_waiting_seconds:g} seconds", answers
            ) from error
        except BaseException:  # its client went away
            self._give_up(one)
            raise

    def retry_after_seconds(self, answers: int = 1) -> int:
        """When a place may be free for whoever comes now: after those who wait, at the rate of the last while."""
        now = self._clock()
        left = [(when, count) for when, count in self._left if now - when <= RATE_SECONDS]
        seconds = self._max_waiting_seconds
        if left:
            rate = sum(count for _, count in left) / max(now - left[0][0], 0.001)  # answers a second
            seconds = (self._answers_waiting() + answers) / rate
        return math.ceil(min(max(seconds, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS))

    def _answers_waiting(self) -> int:
        return sum(one.answers for one in self._queue)

    def _overloaded(self, why: str, answers: int) -> Overloaded:
        return Overloaded(why, retry_after_seconds=self.retry_after_seconds(answers))

    def _fits(self, answers: int) -> bool:
        """More answers than there are places go alone."""
        return self._running == 0 or self._running + answers <= self._places

    def _take(self, answers: int) -> Place:
        self._running += answers
        return Place(self, answers)

    def _leave(self, answers: int) -> None:
        self._running -= answers
        self._left.append((self._clock(), answers))
        self._call()

    def _call(self) -> None:
        """Those who are next, in their order: nobody overtakes a request for many answers, which would never come in."""
        while self._queue and self._fits(self._queue[0].answers):
            one = self._queue.popleft()
            one.called.set_result(self._take(one.answers))

    def _give_up(self, one: _Waiting) -> None:
        """It may have been called in the very moment in which it gave up."""
        if one in self._queue:
            self._queue.remove(one)
            self._call()  # those behind it may fit where it did not
        elif one.called.done() and not one.called.cancelled():
            one.called.result().release()
