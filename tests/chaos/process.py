"""The processes of a chaos run: forked from a server that has imported everything, so that one starts in no time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("tests.chaos.replica", "tests.chaos.user", "tests.chaos.matcher", "tests.chaos.database"),
        *("tests.chaos.rounds.conductor", "tests.chaos.rounds.replica", "tests.chaos.rounds.people"),
        *("tests.chaos.rounds.operator", "tests.chaos.rounds.attempts"),
    ]
)

pipe = _context.Pipe


def start(log: Path, life: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Its output, that of one that went before it too, is in `log`. It can be killed at any moment."""
    process = _context.Process(target=_live, args=(log, life, *arguments), daemon=True)
    process.start()
    return process


def _live(log: Path, life: Callable[..., None], *arguments: Any) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    _end_with_parent()
    life(*arguments)


def _end_with_parent() -> None:
    """A harness that was itself killed leaves no process behind."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
