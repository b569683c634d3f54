"""Ten times more chats than two replicas can answer: who is answered how late, who is refused how soon, what of votes.

    python -m tests.benchmarks.overload                 60 seconds of overload
    python -m tests.benchmarks.overload --seconds 10

A fake engine with a known pace; questions come by the clock, whether or not the last ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, text

from tests.benchmarks.figures import percentile
from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, fake_cluster
from tests.line import Line, Reply
from tests.storm import BODY, CHAT

TIMES = 10
TOKENS, TOKEN_SECONDS = 20, 0.04  # an answer takes 0.8 s
REPLICAS, AT_ONCE = 2, 8
WAITING = 4  # of each replica: half a batch, so that who waits is answered within one and a half times an answer
CAPACITY = REPLICAS * AT_ONCE / (TOKENS * TOKEN_SECONDS)  # answers a second
VOTES_PER_SECOND = 20
_CALM_SECONDS = 5.0


@dataclass
class Seen:
    """What the clients of a time of overload have seen."""

    replies: list[Reply] = field(default_factory=list)
    broken: int = 0  # connections
    votes: list[Reply] = field(default_factory=list)
    seconds: float = 0.0


class Lines:
    """As many connections as are needed at once; open questions would else wait for one another."""

    def __init__(self, cluster: FakeCluster) -> None:
        server = cluster.settings.server
        self._cluster = (server.host, server.port, cluster.keys["app"])
        self._idle: list[Line] = []

    async def post(self, path: str, body: Any) -> Reply:
        """Raises `OSError` and `EOFError`."""
        line = self._idle.pop() if self._idle else Line(*self._cluster)
        reply = await line.post(path, body)
        self._idle.append(line)
        return reply

    def close(self) -> None:
        for line in self._idle:
            line.close()


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overload")
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args(arguments).seconds
    sections = {"serving": {"replicas": REPLICAS, "max_requests": AT_ONCE, "max_waiting": WAITING}}
    pace = {"tokens": TOKENS, "token_seconds": TOKEN_SECONDS, "sections": sections}
    with tempfile.TemporaryDirectory() as folder, fake_cluster(Path(folder), free_port(), **pace) as cluster:
        asyncio.run(_measure(cluster, seconds))


async def _measure(cluster: FakeCluster, seconds: float) -> None:
    lines = Lines(cluster)
    calm = await _closed_loop(lines, clients=1, seconds=_CALM_SECONDS)
    full = await _closed_loop(lines, clients=REPLICAS * AT_ONCE, seconds=2 * _CALM_SECONDS)
    capacity = len(full) / (2 * _CALM_SECONDS)
    before_bytes = _memory(cluster)
    seen = await _overload(lines, TIMES * CAPACITY, seconds, [reply.body["id"] for reply in full])
    grown = _memory(cluster) / before_bytes - 1
    recovery = await _recovered(lines, 1.2 * percentile([reply.seconds for reply in calm], 0.95))
    lines.close()
    _report(cluster, seen, calm, capacity, recovery, grown)


async def _closed_loop(lines: Lines, clients: int, seconds: float) -> list[Reply]:
    """Each client asks when it has its answer."""
    until = time.perf_counter() + seconds

    async def client() -> list[Reply]:
        replies = []
        while time.perf_counter() < until:
            replies.append(await lines.post(CHAT, BODY))
        return replies

    replies = [reply for part in await asyncio.gather(*(client() for _ in range(clients))) for reply in part]
    return [reply for reply in replies if reply.status == 200]


async def _overload(lines: Lines, per_second: float, seconds: float, rateable: Sequence[str]) -> Seen:
    seen, began = Seen(), time.perf_counter()

    async def ask(number: int) -> None:
        try:
            seen.replies.append(await lines.post(CHAT, BODY))
        except (OSError, EOFError):
            seen.broken += 1

    async def vote(number: int) -> None:
        vote = {"completion_id": rateable[number % len(rateable)], "rating": "up", "user": f"user {number}"}
        seen.votes.append(await lines.post("/v1/feedback", vote))

    async with asyncio.TaskGroup() as under_way:

        async def by_clock(rate: float, start: Callable[[int], Coroutine[Any, Any, None]]) -> None:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                under_way.create_task(start(number))

        under_way.create_task(by_clock(per_second, ask))
        under_way.create_task(by_clock(VOTES_PER_SECOND, vote))
    seen.seconds = time.perf_counter() - began
    return seen


async def _recovered(lines: Lines, seconds: float) -> float:
    """How long after the overload a question is answered as soon as before it."""
    began = time.perf_counter()
    while True:
        reply = await lines.post(CHAT, BODY)
        if reply.status == 200 and reply.seconds <= seconds:
            return time.perf_counter() - began - reply.seconds


def _memory(cluster: FakeCluster) -> int:
    """Bytes of all replicas."""
    return sum(psutil.Process(pid).memory_info().rss for pid in cluster.orders.pids())


def _report(
    cluster: FakeCluster, seen: Seen, calm: Sequence[Reply], capacity: float, recovery: float, grown: float
) -> None:
    accepted = [reply.seconds for reply in seen.replies if reply.status == 200]
    refused = [reply for reply in seen.replies if reply.status in (429, 503)]
    silent = sum("retry-after" not in reply.headers for reply in refused)
    unloaded = percentile([reply.seconds for reply in calm], 0.95)
    acknowledged = sum(vote.status == 201 for vote in seen.votes)
    goodput = len(accepted) / seen.seconds
    statuses = Counter(reply.status for reply in seen.replies)
    print(
        f"overload: {TIMES} times {CAPACITY:.0f} answers/s for {seen.seconds:.0f} s: {len(seen.replies)} requests, "
        f"{dict(statuses)}, {seen.broken} broken connections"
    )
    print(
        f"  accepted: p95 {percentile(accepted, 0.95):.2f} s, {percentile(accepted, 0.95) / unloaded:.2f} x of unloaded"
    )
    waits = [reply.seconds for reply in refused]
    print(
        f"  refused: p50 {1000 * percentile(waits, 0.5):.0f} ms, p99 {1000 * percentile(waits, 0.99):.0f} ms, "
        f"{silent} without Retry-After"
    )
    print(
        f"  goodput: {goodput:.1f} answers/s, {goodput / capacity:.0%} of {capacity:.1f} at full load without refusals"
    )
    waits = [vote.seconds for vote in seen.votes]
    print(
        f"  votes: {len(seen.votes)} sent, {acknowledged} acknowledged, {acknowledged - _kept(cluster)} lost; "
        f"p99 {1000 * percentile(waits, 0.99):.0f} ms"
    )
    print(f"  recovery: {recovery:.1f} s; memory of the replicas {grown:+.1%}")


def _kept(cluster: FakeCluster) -> int:
    engine = create_engine(cluster.store_url)
    with engine.begin() as connection:
        kept = connection.execute(text("SELECT count(*) FROM feedback")).scalar_one()
    engine.dispose()
    return kept


if __name__ == "__main__":
    main(sys.argv[1:])
