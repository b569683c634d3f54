"""Ray's Python proxy beside its HAProxy: what each costs a request, and what callers see when a replica is lost.

The whole service on two replicas with an engine that takes no time, so that what is left is the way to it and back.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.figures import milliseconds
from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster
from tests.line import Line, Reply
from tests.storm import BODY, CHAT, Storm, storming

INGRESSES = ("python", "haproxy")
CONCURRENCY = (1, 8, 32)
TOKENS = 20  # of an answer, and parts of a stream
_WARM_UP_SECONDS, _SECONDS = 2.0, 8.0
_KILLS = 3
_CLOSED = 10  # streams that are closed in their middle


def main() -> None:
    print(f"ingress: 2 replicas, a fake engine without delay, {TOKENS} tokens an answer")
    print("ingress  kind    at once  answers/s    p50 ms    p99 ms  first p50       p99")
    ends = []
    for ingress in INGRESSES:
        ends.append(_measure(ingress))
    print("\n".join(ends))


def _measure(ingress: str) -> str:
    """Prints a table's rows; returns what is said below it."""
    print(f"  {ingress} ...", file=sys.stderr, flush=True)
    sections = {"server": {"ingress": ingress}, "serving": {"stuck_seconds": 5}}
    with tempfile.TemporaryDirectory() as folder:
        with fake_cluster(Path(folder), free_port(), tokens=TOKENS, sections=sections) as cluster:
            for stream in (False, True):
                for concurrency in CONCURRENCY:
                    replies, seconds = asyncio.run(_load(cluster, stream, concurrency))
                    first = [reply.first_seconds for reply in replies]
                    kind = "stream" if stream else "unary"
                    print(
                        f"{ingress:8} {kind:7} {concurrency:7}  {len(replies) / seconds:9.0f}"
                        f"{milliseconds([reply.seconds for reply in replies], 0.5, 0.99)}"
                        f"{milliseconds(first, 0.5, 0.99) if stream else ''}",
                        flush=True,
                    )
            lost = [_kill(cluster) for _ in range(_KILLS)]
            open_ports = sorted(_ports_beyond_loopback(cluster))
            below = cluster.process.children(recursive=True)
            began = time.monotonic()
            cluster.stop()
            ended = time.monotonic() - began
        _, alive = psutil.wait_procs(below, timeout=10)
    with tempfile.TemporaryDirectory() as folder:
        slow = {"server": {"ingress": ingress}}
        with fake_cluster(Path(folder), free_port(), tokens=1500, token_seconds=0.05, sections=slow) as cluster:
            freed = [asyncio.run(_close(cluster)) for _ in range(_CLOSED)]
    broken = sum(kind == "broken off" for kinds in lost for kind in kinds)
    told = sum(kind == "told" for kinds in lost for kind in kinds)
    return (
        f"{ingress}: a replica killed under 8 clients, {_KILLS} times: {told} requests told so in our shape, {broken} not; "
        f"closed streams free their pin after {statistics.median(freed):.2f} s (p50), {max(freed):.2f} s at most; "
        f"down in {ended:.0f} s, {len(alive)} processes left; ports open on all interfaces: {len(open_ports)}"
    )


async def _load(cluster: FakeCluster, stream: bool, concurrency: int) -> tuple[list[Reply], float]:
    """Answers, and the seconds they took altogether."""
    body = BODY | {"stream": stream}

    async def client(until: float) -> list[Reply]:
        replies = []
        async with _line(cluster) as line:
            while time.perf_counter() < until:
                replies.append(await line.post(CHAT, body))
        return replies

    async def clients(seconds: float) -> list[Reply]:
        until = time.perf_counter() + seconds
        return [reply for part in await asyncio.gather(*(client(until) for _ in range(concurrency))) for reply in part]

    await clients(_WARM_UP_SECONDS)
    began = time.perf_counter()
    replies = await clients(_SECONDS)
    seconds = time.perf_counter() - began
    assert all(reply.status == 200 for reply in replies)
    return replies, seconds


def _kill(cluster: FakeCluster) -> Sequence[str]:
    """How each request ended that did not get its answer, until the replica was replaced."""
    server = cluster.settings.server
    storm = Storm(server.host, server.port, cluster.keys["app"])
    lost = cluster.orders.pids()[0]
    with storming(storm):
        eventually(lambda: storm.answers > 10 * storm.clients)
        psutil.Process(lost).kill()
        eventually(lambda: lost not in cluster.orders.pids() and len(cluster.status()["replicas"]) == 2)
        enough = storm.answers + 10 * storm.clients
        eventually(lambda: storm.answers > enough)
    return ["told" if '"error"' in fault else "broken off" for fault in storm.faults]


async def _close(cluster: FakeCluster) -> float:
    """Seconds from a stream's close until nothing is pinned."""
    async with _line(cluster) as line:
        asking = asyncio.create_task(line.post(CHAT, BODY | {"stream": True}))
        await asyncio.to_thread(eventually, lambda: _pinned(cluster) == 1)
        began = time.perf_counter()
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.to_thread(eventually, lambda: _pinned(cluster) == 0)
        return time.perf_counter() - began


def _pinned(cluster: FakeCluster) -> int:
    replicas: list[dict[str, Any]] = cluster.status()["replicas"]
    return sum(sum(replica["in_flight"].values()) for replica in replicas)


def _ports_beyond_loopback(cluster: FakeCluster) -> set[int]:
    """Of HAProxy alone: Ray's own are the same on both sides, and guarded by its token."""
    programs = (child for child in cluster.process.children(recursive=True) if child.name() == "haproxy")
    listening = (
        one for program in programs for one in program.net_connections("tcp") if one.status == psutil.CONN_LISTEN
    )
    return {one.laddr.port for one in listening if one.laddr.ip in ("0.0.0.0", "::")}


def _line(cluster: FakeCluster) -> Line:
    return Line(cluster.settings.server.host, cluster.settings.server.port, cluster.keys["app"])


if __name__ == "__main__":
    main()
