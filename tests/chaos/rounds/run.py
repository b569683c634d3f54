"""One run with rounds, from its seed to its findings."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from service.contracts import Role
from service.store.store import Store
from tests.chaos.database import Database
from tests.chaos.rounds import checker, faults
from tests.chaos.rounds.attempts import Lobby
from tests.chaos.rounds.books import Books
from tests.chaos.rounds.checker import Findings, Ledger
from tests.chaos.rounds.host import RemoteHost
from tests.chaos.rounds.scene import REPLICAS, Scene, World
from tests.chaos.run import listening

_FOLLOW_SECONDS = 15.0  # within which replicas answer as the route says
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Report:
    seed: int
    findings: Findings
    kills: Counter[str]  # victim -> how many
    moments: Counter[str]  # state of the newest round -> kills in it
    rounds: Counter[str]  # state at the end -> how many
    reasons: Counter[str]  # of rounds that were neither promoted nor cancelled
    attempts: int
    answers: int  # to people
    waits: int  # times when a candidate had to be tried again
    seconds: float

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.kills.total()} kills ({_told(self.kills)}), while the newest round was "
            f"{_told(self.moments)}; {self.rounds.total()} rounds ({_told(self.rounds)}) in {self.attempts} attempts; "
            f"{self.waits} trials broken off and tried again; {self.answers} answers to people; {len(self.findings.faults)} faults; {self.seconds:.0f} s"
        )


def run(database: Database, folder: Path, seed: int, kills: int) -> Report:
    """Rounds, while so many processes are killed, and one in peace. `folder` and the database are new; logs stay in it."""
    began = time.monotonic()
    (folder / "state").mkdir()
    with contextlib.ExitStack() as stack:
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))  # names of sockets are short
        lobby = Lobby(folder / "orders", short)
        lobby.orders.mkdir()
        world = World(database.url, folder, lobby, asyncio.run(_keys(database.url)), seed)
        books = Books(database.url)
        stack.callback(books.close)
        listeners = [stack.enter_context(listening()) for _ in range(1 + REPLICAS)]
        scene = Scene(world, books, listeners)
        stack.callback(scene.end)
        scene.play(faults.kills(seed, kills))
        unlike = asyncio.run(_unlike(books, RemoteHost(short)))
        ledger, left = books.ledger(), scene.attempts_alive() + _left(books)
    findings = checker.check(ledger, unsound=scene.unsound, left=left, unlike=unlike)
    seconds = time.monotonic() - began
    return _report(seed, findings, scene, ledger, seconds)


def _report(seed: int, findings: Findings, scene: Scene, ledger: Ledger, seconds: float) -> Report:
    ended = ("promoted", "cancelled")
    return Report(
        seed,
        findings,
        scene.killed,
        scene.moments,
        Counter(row["state"] for row in ledger.rounds),
        Counter(f"{row['state']}: {row['reason']}" for row in ledger.rounds if row["state"] not in ended),
        len(scene.attempts),
        ledger.answers,
        ledger.waits,
        seconds,
    )


def _left(books: Books) -> list[str]:
    candidate, open = books.route().candidate, books.unsettled()
    return ([f"{candidate} is still a candidate"] if candidate else []) + (
        [f"{open} rounds are not settled"] if open else []
    )


async def _unlike(books: Books, host: RemoteHost) -> list[str]:
    """How replicas differ from the route, in the end."""
    until = time.monotonic() + _FOLLOW_SECONDS
    while True:
        route, replicas = books.route(), await host.reached()
        said = [(each.stable, each.generation, each.error) for each in replicas]
        if said == [(route.stable, route.generation, None)] * REPLICAS:
            return []
        if time.monotonic() > until:
            return [f"{replicas} do not follow {route}"]
        await asyncio.sleep(_LOOK_SECONDS)


async def _keys(store_url: str) -> tuple[str, str]:
    """The people's app's and the operator's."""
    store = Store(store_url)
    try:
        return (await store.keys.issue(Role.APP, "shop"))[1], (await store.keys.issue(Role.OPERATOR, "tess"))[1]
    finally:
        await store.close()


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common()) or "none"
