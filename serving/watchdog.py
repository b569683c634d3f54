"""Ends a replica's process when its event loop stands still, so that Serve starts another in its place.

Serve cannot tell by itself: it asks `check_health` on the very loop that is stuck, and its own ping runs on another.
A thread of ours can. It knows no engine and no requests, only whether the loop still comes round.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable

import psutil

LOOK_SECONDS = 1.0


def end_process() -> None:
    """At once, and with a line of each thread in the log: whatever is stuck would not let go of an orderly end.

    The engine's own processes go first. Left behind, they would keep the memory that the next replica's engine needs.
    """
    faulthandler.dump_traceback(sys.__stderr__ or 2)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


class Watchdog:
    """Looks at one event loop, from its start to its `stop`."""

    def __init__(
        self, limit_seconds: float, end: Callable[[], None] = end_process, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._limit_seconds = limit_seconds
        self._end = end
        self._look_seconds = look_seconds
        self._over = threading.Event()
        self._came_round = threading.Event()  # since the last look
        self._standstill_seconds = 0.0

    @property
    def standstill_seconds(self) -> float:
        """How long the loop has not come round, as far as the looks tell."""
        return self._standstill_seconds

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Counts looks and not the clock: a process that was stopped for a while, with all its threads, is not stuck."""
        self._ask(loop)
        while not self._over.wait(self._look_seconds) and not loop.is_closed():
            if self._came_round.is_set():
                self._standstill_seconds = 0.0
                self._ask(loop)
            else:
                self._standstill_seconds += self._look_seconds
            if self._standstill_seconds >= self._limit_seconds:
                self._end()
                return

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        self._came_round.clear()
        try:
            loop.call_soon_threadsafe(self._came_round.set)
        except RuntimeError:  # closed just now: there is nothing left to watch
            self._over.set()
