"""One request's turn at the engine: what it holds meanwhile, how long it may take, and when it began to answer.

It ends once, whatever ends it: the engine has finished, its client went away, its time was up, or something broke.
Then its place, its adapter's pin and its caller's own accounts are free again. It knows nothing of how answers look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serving.admission import Place
from serving.contracts import EngineOutput
from serving.errors import DeadlineExceeded
from serving.meter import Meter
from serving.pins import Pin

GAPS_AT_ONCE = 64  # tokens whose times are counted together


@dataclass(frozen=True)
class Deadlines:
    """Both from the request's arrival."""

    first_token_seconds: float
    answer_seconds: float


class Turn:
    """Begins when the request has its place and its adapter. `began` is the loop's time of its arrival."""

    def __init__(
        self,
        completion_id: str,
        *,
        began: float,
        place: Place,
        pin: Pin,
        deadlines: Deadlines,
        meter: Meter,
        ended: Callable[[int], None],
    ) -> None:
        self.completion_id = completion_id
        self.adapter = pin.adapter
        self.durable: bool | None = None  # its record; None: the answer is not complete yet, or broke off
        self.first_token_seconds: float | None = None
        self.late: DeadlineExceeded | None = None
        self.on_late: Callable[[], None] | None = None  # makes the engine let go
        self._place, self._pin = place, pin
        self._deadlines = deadlines
        self._meter = meter
        self._ended = ended
        self._open = True
        self._began = began
        self._last = began  # when the last token came
        self._gaps: list[float] = []  # seconds between tokens, not counted yet
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(
            began + min(deadlines.first_token_seconds, deadlines.answer_seconds), self._due
        )

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return self._loop.time() - self._began

    def sampled(self) -> None:
        """A token has come, or several."""
        now = self._loop.time()
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self._began
            self._meter.first_token(self.adapter, self.first_token_seconds)
        else:
            self._gaps.append(now - self._last)
            if len(self._gaps) == GAPS_AT_ONCE:
                self._count_gaps()
        self._last = now

    def end(self, output: EngineOutput | None = None) -> None:
        """Give back what it holds. Without `output` the engine took no token of it. Doing it twice does it once."""
        if not self._open:
            return
        self._open = False
        self._timer.cancel()
        self._count_gaps()
        self._place.release()
        self._pin.release()
        self._ended(0 if output is None else tokens_of(output))

    def _count_gaps(self) -> None:
        if self._gaps:
            self._meter.next_tokens(self.adapter, self._gaps)
            self._gaps = []

    def _due(self) -> None:
        of_all, of_first = self._deadlines.answer_seconds, self._deadlines.first_token_seconds
        if self.seconds >= of_all:
            self.late = DeadlineExceeded("The answer did not end", of_all)
        elif self.first_token_seconds is None:
            self.late = DeadlineExceeded("No token came", of_first)
        else:
            self._timer = self._loop.call_at(self._began + of_all, self._due)
            return
        self._meter.refused(self.late.code)
        if self.on_late is not None:
            self.on_late()


def tokens_of(output: EngineOutput) -> int:
    """That were read and written."""
    return len(output.prompt_token_ids) + sum(len(choice.token_ids) for choice in output.choices)
