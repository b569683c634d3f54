"""Waits until a server that was measured leaves the cores alone.

vLLM's worker waits busily for a second or so after its last step, which would be a core less for whoever is asked next.
"""

from __future__ import annotations

import time

import psutil

_LOOK_SECONDS = 0.25
_BUSY_SHARE = 0.1  # of one core
_GIVE_UP_SECONDS = 30.0


def until_quiet(pid: int) -> None:
    """Of the process and all below it. Raises `RuntimeError` when they never are."""
    top = psutil.Process(pid)
    processes = [top, *top.children(recursive=True)]
    until = time.monotonic() + _GIVE_UP_SECONDS
    used, looked = _core_seconds(processes), time.monotonic()
    while looked < until:
        time.sleep(_LOOK_SECONDS)
        before, began = used, looked
        used, looked = _core_seconds(processes), time.monotonic()
        if used - before < _BUSY_SHARE * (looked - began):
            return
    raise RuntimeError(f"process {pid} still computes {_GIVE_UP_SECONDS:.0f} s after it has answered")


def _core_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)
