"""One chaos run, from its seed to its findings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, select

from service.contracts import Role
from service.store.store import Store
from service.store.tables import completions, feedback, imported_pairs, vote_fates
from tests.chaos import checker, faults, history
from tests.chaos.checker import Findings
from tests.chaos.database import Database
from tests.chaos.matcher import catch_up
from tests.chaos.replica import Death, died
from tests.chaos.scene import Scene, Step
from tests.chaos.user import UserPlan

REPLICAS = 2
PROCESSES, USERS_EACH = 3, 4  # of users


@dataclass(frozen=True)
class Report:
    seed: int
    findings: Findings
    kills: Counter[str]  # victim, or point where a replica killed itself -> how many
    seconds: float

    def __str__(self) -> str:
        found = self.findings
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self.kills.items())) or "nobody"
        unknown = f"{found.unknown} unknown, {found.recovered} of them stored"
        return f"seed {self.seed}: {found.acknowledged} acknowledged, {unknown}; killed: {kills}; {self.seconds:.1f} s"


def run(database: Database, folder: Path, seed: int, votes: int) -> Report:
    """At least `votes` are acknowledged, while processes are killed. `folder` is new; histories and logs stay in it."""

    def steps(scene: Scene) -> list[Step]:
        return scene.kills(faults.kills(seed, votes))

    return perform(database, folder, seed, votes, steps, faults.deaths(seed, votes, REPLICAS))


def perform(
    database: Database,
    folder: Path,
    seed: int,
    votes: int,
    steps: Callable[[Scene], Iterable[Step]],
    deaths: Sequence[Death | None] = (None,) * REPLICAS,
    **of_users: Any,
) -> Report:
    """The same with whatever happens to the service meanwhile. `of_users` goes into their plans."""
    began = time.monotonic()
    app = f"chaos-{seed}-{time.time_ns():x}"  # what the store holds of this run is this app's
    keys = asyncio.run(_keys(database.url, app))
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listening()) for _ in deaths]
        scene = Scene(database, folder, listeners)
        stack.callback(scene.end)
        ports = tuple(each.getsockname()[1] for each in listeners)
        plan = UserPlan("", folder, ports, app, *keys, str(seed), votes, **of_users)
        scene.play(_users(plan), deaths, steps(scene))
    database.start()
    kills = scene.killed + Counter(point.value for point in died(folder))
    return Report(seed, check(database, folder, app), kills, time.monotonic() - began)


def check(database: Database, folder: Path, app: str) -> Findings:
    """What the histories in the folder say against what the store holds of the app."""
    asyncio.run(catch_up(database.url))
    deeds = [deed for path in sorted(folder.glob("*.history")) for deed in history.read(path)]
    engine = create_engine(database.url)
    with engine.connect() as connection:
        rows = connection.execute(select(feedback).where(feedback.c.app == app)).mappings().all()
        kept = connection.scalars(select(completions.c.id).where(completions.c.app == app)).all()
        prompt = imported_pairs.c.messages[0]["content"].astext
        imported = connection.scalars(select(prompt).where(prompt.startswith(f"{app} "))).all()
        matched = connection.scalars(select(vote_fates.c.seq).where(vote_fates.c.app == app)).all()
    engine.dispose()
    return checker.check(deeds, rows, kept, matched, Counter(each.split()[1] for each in imported))


def _users(all: UserPlan) -> list[list[UserPlan]]:
    """Who together say what `all` says."""
    each = -(-all.votes // (PROCESSES * USERS_EACH))  # rounded up
    plans = [
        replace(all, name=name, history=all.history / f"{name}.history", seed=f"{all.seed}/{name}", votes=each)
        for name in (f"user-{number}" for number in range(PROCESSES * USERS_EACH))
    ]
    return [plans[first : first + USERS_EACH] for first in range(0, len(plans), USERS_EACH)]


def listening() -> socket.socket:
    """On a free port. Said to be TCP, or else asyncio leaves Nagle's algorithm on, and every answer waits 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    return listener


async def _keys(store_url: str, app: str) -> tuple[str, str]:
    """The app's and an operator's."""
    store = Store(store_url)
    try:
        return (await store.keys.issue(Role.APP, app))[1], (await store.keys.issue(Role.OPERATOR, app))[1]
    finally:
        await store.close()
