"""A loop that stands still is noticed from outside of it; one that comes round is left alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil

from serving.watchdog import Watchdog

LOOK_SECONDS = 0.005
LIMIT_SECONDS = 0.02


async def test_a_loop_that_stands_still_is_ended() -> None:
    ended = threading.Event()
    watchdog = Watchdog(LIMIT_SECONDS, ended.set, LOOK_SECONDS)
    watchdog.start(asyncio.get_running_loop())
    ended.wait()  # this very loop stands still meanwhile
    assert watchdog.standstill_seconds >= LIMIT_SECONDS


class _Loop(asyncio.SelectorEventLoop):
    """Comes round at once, or never, and counts how often it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.enough = threading.Event()

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object, context: object = None) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        callback(*args)
        self.asked += 1
        if self.asked == 20:
            self.enough.set()


def test_a_loop_that_comes_round_is_left_alone() -> None:
    loop, ended = _Loop(), threading.Event()
    watchdog = Watchdog(LIMIT_SECONDS, ended.set, LOOK_SECONDS)
    watchdog.start(loop)
    loop.enough.wait()
    watchdog.stop()
    assert not ended.is_set()
    assert watchdog.standstill_seconds == 0
    loop.close()


def test_it_ends_with_its_loop() -> None:
    loop, ended = asyncio.SelectorEventLoop(), threading.Event()
    loop.close()
    before = threading.active_count()
    Watchdog(LIMIT_SECONDS, ended.set, LOOK_SECONDS).start(loop)
    for thread in threading.enumerate()[before:]:
        thread.join()
    assert not ended.is_set()


def test_a_process_that_ends_itself_takes_its_children_along() -> None:
    program = """
import subprocess, sys
from serving.watchdog import end_process
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
end_process()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "end_process" in ended.stderr  # where it stood
    child = int(ended.stdout)
    while _runs(child):
        threading.Event().wait(0.01)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
