"""The fake engine in a process of its own, such as a replica of Ray Serve: it does what notes in a folder tell it.

A test writes `orders.give("die", pid)` and the engine of that process is dead at its next look. Nothing of the
deployment knows of it: what is tested is the code that runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from serving.settings import ServingSettings
from tests.fakes import FakeEngine

Order = Literal[
    "die",  # as when the engine's process is gone
    "stick",  # the event loop never comes round again
    "hold",  # loads of adapters do not come back while the note is there
    "refuse",  # the adapter that the note names cannot be loaded
]
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Orders:
    """Makes engines (`serving.deployment.MakeEngine`), and tells those that it has made what to do."""

    folder: Path
    tokens: int = 4  # of an answer
    token_seconds: float = 0.0

    def __call__(self, model: str, settings: ServingSettings) -> RemoteEngine:
        return RemoteEngine(self, settings)

    def give(self, order: Order, pid: int, words: str = "") -> None:
        """Whole or not at all: the engine may look at any moment."""
        scratch = self.folder / f".{order}.{pid}"
        scratch.write_text(words)
        scratch.rename(self._note(order, pid))

    def withdraw(self, order: Order, pid: int) -> None:
        self._note(order, pid).unlink()

    def read(self, order: Order, pid: int) -> str | None:
        """None: no such order."""
        try:
            return self._note(order, pid).read_text()
        except FileNotFoundError:
            return None

    def holding(self, pid: int) -> bool:
        """Whether a load has come to a note that holds it."""
        return (self.folder / f"holding.{pid}").exists()

    def pids(self) -> list[int]:
        """The living processes with an engine, oldest first."""
        notes = sorted(self.folder.glob("engine.*"), key=lambda note: note.stat().st_mtime_ns)
        return [pid for note in notes if psutil.pid_exists(pid := int(note.suffix[1:]))]

    def _note(self, order: Order, pid: int) -> Path:
        return self.folder / f"{order}.{pid}"


class RemoteEngine(FakeEngine):
    """Made inside the event loop that it serves."""

    def __init__(self, orders: Orders, settings: ServingSettings) -> None:
        super().__init__(capacity=settings.adapter_places, tokens=orders.tokens)
        self.token_seconds = orders.token_seconds
        self._orders = orders
        self._pid = os.getpid()
        (orders.folder / f"engine.{self._pid}").touch()
        self._obeying = asyncio.get_running_loop().create_task(self._obey())

    async def load(self, name: str, directory: str) -> None:
        if self._orders.read("refuse", self._pid) == name:
            self.unloadable.add(name)
        holding = self._orders.folder / f"holding.{self._pid}"
        while self._orders.read("hold", self._pid) is not None:
            holding.touch()
            await asyncio.sleep(_LOOK_SECONDS)
        holding.unlink(missing_ok=True)
        await super().load(name, directory)

    def shutdown(self) -> None:
        super().shutdown()
        self._obeying.cancel()

    async def _obey(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.dead = self.dead or self._orders.read("die", self._pid) is not None
            while self._orders.read("stick", self._pid) is not None:
                time.sleep(_LOOK_SECONDS)  # noqa: ASYNC251 - blocking the loop is the point
