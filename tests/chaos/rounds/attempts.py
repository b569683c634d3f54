"""Attempts of a run's rounds, each a process of its own that outlives the Conductor: named, and found again by the next.

`Attempts` is the Conductor's side, as `training/attempt.py` has it for Ray's named, detached actors: an order in a folder
is what an actor's name is to the cluster, and the supervisor starts whoever is ordered. `live` is the process, which
writes an adapter in place of learning one, and keeps its progress and report until it is told to end.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.adapters import WEIGHTS, sha256_of
from tests.adapter_files import change_manifest, change_weights, write_adapter
from tests.chaos.rounds import line
from tests.fake_trainer import leave_samples, report, step
from training.contracts import AttemptStatus, Progress, RoundReport, RoundSpec
from training.files import write_file
from training.snapshot import iterate, pair_digest

STEPS = 6
SAMPLES = 4  # answers that the candidate's log-probs are compared on
_STEP_SECONDS = 0.15  # at most
_SECONDS = 30.0  # of silence


@dataclass(frozen=True)
class Lobby:
    """Where attempts are ordered, and where they listen."""

    orders: Path
    sockets: Path

    def order(self, name: str) -> Path:
        return self.orders / name

    def socket(self, name: str) -> Path:
        return self.sockets / f"attempt-{name}"

    def ordered(self) -> list[str]:
        return sorted(path.name for path in self.orders.glob("[!.]*"))


class Attempts:
    """`service.attempts.Trainer`."""

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby

    async def start(self, spec: RoundSpec) -> None:
        """Again does nothing."""
        order = self._lobby.order(name_of(spec))
        if not order.exists():
            write_file(order, spec.model_dump_json().encode())

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus:
        name = name_of(spec)
        try:
            return await line.call(self._lobby.socket(name), "status", since, seconds=_SECONDS)
        except (line.Absent, line.Ended):  # it comes, or the supervisor has not seen yet that it died
            return AttemptStatus(state="running" if self._lobby.order(name).exists() else "absent")

    async def stop(self, spec: RoundSpec) -> None:
        name = name_of(spec)
        self._lobby.order(name).unlink(missing_ok=True)  # first: one that comes just now looks for it when it listens
        try:
            await line.call(self._lobby.socket(name), "end", seconds=_SECONDS)
        except (line.Absent, line.Ended):
            return


def name_of(spec: RoundSpec) -> str:
    return f"{spec.round}-{spec.attempt}"


def live(lobby: Lobby, name: str) -> None:
    """The process's whole life: until it is told to end, or killed."""
    asyncio.run(_live(lobby, name))


async def _live(lobby: Lobby, name: str) -> None:
    try:
        spec = RoundSpec.model_validate_json(lobby.order(name).read_bytes())
    except FileNotFoundError:  # called off before it began
        return
    attempt = _Attempt(spec)
    async with await line.listen(lobby.socket(name), attempt.answer):
        if lobby.order(name).exists():
            await attempt.train()
            await asyncio.Event().wait()


class _Attempt:
    def __init__(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._dice = random.Random(name_of(spec))
        self._progress: list[Progress] = []
        self._report: RoundReport | None = None

    async def answer(self, method: str, arguments: tuple[Any, ...]) -> AttemptStatus:
        if method == "end":
            os._exit(0)
        [since] = arguments
        new = tuple(self._progress[since:])
        return AttemptStatus(state="done" if self._report else "running", progress=new, report=self._report)

    async def train(self) -> None:
        for phase in ("load", "train"):
            self._progress.append(Progress(kind="phase", phase=phase))
        for number in range(1, STEPS + 1):
            await asyncio.sleep(self._dice.uniform(0, _STEP_SECONDS))
            self._progress.append(Progress(kind="step", step=step(number, steps=STEPS)))
        self._report = learn(self._spec)


def learn(spec: RoundSpec) -> RoundReport:
    """Leaves an adapter that no other attempt leaves, so that a second one of the same round could be told from it."""
    rows = list(iterate(Path(spec.snapshot)))
    assert pair_digest(rows) == spec.pair_digest, "these are not the frozen pairs"
    directory = Path(spec.out) / "adapter"
    parent = spec.parent.name if spec.parent else None
    write_adapter(directory, spec.adapter_ordinal, parent=parent, round=spec.round, pair_digest=spec.pair_digest)
    change_weights(directory, lambda weights: {name: array * spec.attempt for name, array in weights.items()})
    digest = sha256_of(directory / WEIGHTS)
    name = f"policy-{spec.adapter_ordinal:04d}-{digest[:8]}"
    change_manifest(directory, name=name)
    return report(
        adapter_name=name,
        adapter_directory=str(directory),
        adapter_digest=digest,
        pair_digest=spec.pair_digest,
        samples=leave_samples(spec, SAMPLES),
    )
