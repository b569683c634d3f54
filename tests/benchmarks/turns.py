"""Servers that are measured in turn stand still while it is not theirs.

vLLM's worker waits busily for a second after its last step, and would take a core from whoever is asked next.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standing_still(group: int) -> Iterator[None]:
    """All processes of the group `group`, but for its `turn`s; at the end they go on."""
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


@contextmanager
def turn(group: int) -> Iterator[None]:
    os.killpg(group, signal.SIGCONT)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGSTOP)
