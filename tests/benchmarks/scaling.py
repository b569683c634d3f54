"""Replicas 1 to 8 with an engine that takes no time: what a chat and a vote cost each process, in CPU milliseconds.

    python -m tests.benchmarks.scaling
    python -m tests.benchmarks.scaling --ingress haproxy --replicas 1 2 --requests 300

CPU time and not rates, since more replicas than cores can only share them, and since others' load on the machine
hardly changes it. What the processes take at rest is measured before and left out of a request's cost.
`heliotrope plan` reckons with these figures (`service/planning.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text

from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster
from tests.line import Line
from tests.storm import CHAT

REPLICAS = (1, 2, 4, 8)
INGRESSES = ("python", "haproxy")
CLIENTS = 32
TOKENS = 20
QUESTION = "Please explain " + "at some length " * 20  # about 300 characters: the fake engine's prompt tokens are bytes
WARM_UP, REQUESTS = 300, 1200  # of each kind; a number and no time, so that a busy machine measures as much
_REST_SECONDS = 8.0
GROUPS: tuple[str, ...] = ("replicas", "proxy", "postgres", "conductor", "ray")
_TITLES = {"ProxyActor": "proxy", "HAProxyManager": "proxy", "haproxy": "proxy", "Conductor": "conductor"}


@dataclass(frozen=True)
class Spent:
    """Since some moment in the past."""

    at: float  # seconds
    cpu_seconds: dict[str, float]  # of each group
    commits: int
    wal_bytes: int


@dataclass(frozen=True)
class Cost:
    """Of one request of a kind."""

    count: int
    seconds: float  # that all of them took together
    cpu_milliseconds: dict[str, float]
    commits: float
    wal_bytes: float

    @property
    def whole(self) -> float:
        """Of all processes."""
        return sum(self.cpu_milliseconds.values())


class Meter:
    """The processes of a cluster, by what they are for."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._store: Engine = create_engine(cluster.store_url, isolation_level="AUTOCOMMIT")
        pid_file = next(cluster.settings.state.rglob("postmaster.pid"))
        self._postmaster = psutil.Process(int(pid_file.read_text().split()[0]))

    def spent(self) -> Spent:
        seconds = dict.fromkeys(GROUPS, 0.0)
        for group, process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds[group] += times.user + times.system
        with self._store.connect() as connection:
            commits, wal = connection.execute(text(
                "SELECT (SELECT sum(xact_commit) FROM pg_stat_database), pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
            )).one()  # fmt: skip
        return Spent(time.perf_counter(), seconds, int(commits), int(wal))

    def cost(self, before: Spent, count: int, at_rest: dict[str, float]) -> Cost:
        """Of each of so many requests since then; `at_rest`: CPU seconds a second that nobody asked for."""
        after = self.spent()
        seconds = after.at - before.at
        cpu = {
            group: after.cpu_seconds[group] - before.cpu_seconds[group] - seconds * at_rest[group] for group in GROUPS
        }
        return Cost(
            count, seconds, {group: 1000 * used / count for group, used in cpu.items()},
            (after.commits - before.commits) / count, (after.wal_bytes - before.wal_bytes) / count,
        )  # fmt: skip

    def at_rest(self) -> dict[str, float]:
        """CPU seconds a second of each group while nobody asks."""
        before = self.spent()
        threading.Event().wait(_REST_SECONDS)
        after = self.spent()
        return {
            group: (after.cpu_seconds[group] - before.cpu_seconds[group]) / (after.at - before.at) for group in GROUPS
        }

    def close(self) -> None:
        self._store.dispose()

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        replicas = set(self._cluster.orders.pids())
        for process in self._cluster.process.children(recursive=True):
            try:
                title = " ".join([process.name(), *process.cmdline()[:1]])
            except psutil.Error:
                continue
            if process.pid in replicas:
                yield "replicas", process
            elif process.pid != self._postmaster.pid:
                yield next((group for word, group in _TITLES.items() if word in title), "ray"), process
        for process in (self._postmaster, *self._postmaster.children()):
            yield "postgres", process


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling")
    parser.add_argument("--ingress", nargs="*", choices=INGRESSES, default=INGRESSES)
    parser.add_argument("--replicas", nargs="*", type=int, default=REPLICAS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    chosen = parser.parse_args(arguments)
    print(f"scaling: {CLIENTS} clients, a fake engine without delay, {TOKENS} tokens an answer, CPU ms a request")
    print(_row("ingress", "replicas", "of", *GROUPS, "all", "to one replica", "commits", "WAL bytes", "a second"))
    print(_row(*["---"] * 12))
    for ingress in chosen.ingress:
        first: dict[str, float] = {}
        for replicas in chosen.replicas:
            print(f"  {ingress}, {replicas} ...", file=sys.stderr, flush=True)
            at_rest, costs = _measure(ingress, replicas, chosen.requests)
            for kind, cost in costs.items():
                _print(ingress, replicas, kind, cost, first.setdefault(kind, cost.whole))
            rest = (f"{1000 * at_rest[group]:.1f}" for group in GROUPS)
            print(_row(ingress, replicas, "rest, ms/s", *rest, f"{1000 * sum(at_rest.values()):.1f}", *[""] * 4))


def _print(ingress: str, replicas: int, kind: str, cost: Cost, of_one: float) -> None:
    print(
        _row(
            ingress, replicas, kind, *(f"{cost.cpu_milliseconds[group]:.2f}" for group in GROUPS), f"{cost.whole:.2f}",
            f"{cost.whole / of_one:.2f}", f"{cost.commits:.2f}", f"{cost.wal_bytes:.0f}",
            f"{cost.count / cost.seconds:.0f}",
        ),
        flush=True,
    )  # fmt: skip


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _measure(ingress: str, replicas: int, requests: int) -> tuple[dict[str, float], dict[str, Cost]]:
    sections = {"server": {"ingress": ingress}, "serving": {"replicas": replicas}}
    with (
        tempfile.TemporaryDirectory() as folder,
        fake_cluster(Path(folder), free_port(), tokens=TOKENS, sections=sections) as cluster,
    ):
        eventually(lambda: len(cluster.status()["replicas"]) == replicas)
        meter = Meter(cluster)
        asyncio.run(_chats(cluster, WARM_UP))
        at_rest = meter.at_rest()
        before = meter.spent()
        answers = asyncio.run(_chats(cluster, requests))
        costs = {"chat": meter.cost(before, len(answers), at_rest)}
        before = meter.spent()
        asyncio.run(_votes(cluster, answers))
        eventually(lambda: _matched(cluster))  # what a vote sets in motion belongs to its cost
        costs["vote"] = meter.cost(before, len(answers), at_rest)
        meter.close()
    return at_rest, costs


async def _chats(cluster: FakeCluster, count: int) -> list[str]:
    """The ids of the answers."""

    async def ask(line: Line, number: int) -> str:
        messages = [{"role": "user", "content": f"{QUESTION} {time.time_ns()} {number}"}]
        reply = await line.post(CHAT, {"model": "policy", "messages": messages, "user": f"user {number % 500}"})
        assert reply.status == 200, reply.body
        return reply.body["id"]

    return await _in_turn(cluster, count, ask)


async def _votes(cluster: FakeCluster, answers: Sequence[str]) -> None:
    """One on each answer."""

    async def vote(line: Line, number: int) -> None:
        body = {"completion_id": answers[number], "rating": "up", "user": f"user {number % 500}"}
        reply = await line.post("/v1/feedback", body)
        assert reply.status == 201, reply.body

    await _in_turn(cluster, len(answers), vote)


async def _in_turn(cluster: FakeCluster, count: int, do: Callable[[Line, int], Awaitable[Any]]) -> list[Any]:
    """Each client goes on with the next number when it has its answer."""
    server, numbers = cluster.settings.server, iter(range(count))

    async def client() -> list[Any]:
        async with Line(server.host, server.port, cluster.keys["app"]) as line:
            return [await do(line, number) for number in numbers]

    return [each for part in await asyncio.gather(*(client() for _ in range(CLIENTS))) for each in part]


def _matched(cluster: FakeCluster) -> bool:
    """Whether every vote has found its fate."""
    engine = create_engine(cluster.store_url)
    with engine.begin() as connection:
        stale = connection.execute(text("SELECT count(*) FROM stale_prompts")).scalar_one()
    engine.dispose()
    return stale == 0


if __name__ == "__main__":
    main(sys.argv[1:])
