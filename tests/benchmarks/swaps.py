"""Swaps one after the other under full load: what fails, mixes or is stale, and how long anybody waits for one.

    python -m tests.benchmarks.swaps                      500 swaps, at least 50,000 requests, a fake engine
    python -m tests.benchmarks.swaps --swaps 50 --requests 5000
    python -m tests.benchmarks.swaps --real               50 swaps on the seedling with vLLM

Two replicas on Ray Serve, half of the clients stream. Each swap is to an adapter that nobody has answered with before.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.client import KEYS_FILE
from service.store.store import Store
from tests.benchmarks.figures import milliseconds, percentile
from tests.conftest import free_port
from tests.fake_cluster import fake_cluster, register
from tests.line import Line
from tests.storm import Storm

_FLIPS = "heliotrope_adapter_swap_duration_seconds"
_FAULTS = 100  # then it is no use to go on
_LOOK_SECONDS = 0.005
_PAUSE_SECONDS = 0.05  # so that cores are left over: what waits for a core says nothing of swaps

Window = tuple[float, float]  # from, to


@dataclass(frozen=True)
class Scale:
    swaps: int
    requests: int  # at least; as many between any two swaps
    clients: int


FULL, REAL = Scale(500, 50_000, 16), Scale(50, 2_000, 8)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.swaps")
    parser.add_argument("--real", action="store_true", help="vLLM and the seedling instead of the fake engine")
    parser.add_argument("--swaps", type=int)
    parser.add_argument("--requests", type=int)
    given = parser.parse_args(arguments)
    scale = REAL if given.real else FULL
    scale = Scale(given.swaps or scale.swaps, given.requests or scale.requests, scale.clients)
    with tempfile.TemporaryDirectory() as folder, (_real if given.real else _fake)(Path(folder), scale) as stage:
        _report(stage, scale, asyncio.run(_run(stage, scale)))


@dataclass(frozen=True)
class Stage:
    """A running service, and the adapters to swap."""

    name: str
    storm: Storm
    operator_key: str
    adapters: Sequence[str]  # by ordinal, from 1


@dataclass(frozen=True)
class Swap:
    """One command, as its caller waits."""

    began: float  # of `time.perf_counter`, as `ended`
    ended: float
    flip_seconds: float  # from the decision to the last replica's answer

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True)
class Measured:
    calm: Sequence[float]  # seconds to the first token before anything was swapped
    between: Sequence[float]  # of those who met a moment half-way between two swaps, as long as a swap
    swapping: Sequence[float]  # of those who met a swap
    promotes: Sequence[Swap]  # verify, load and warm up everywhere, flip
    loaded: Sequence[Swap]  # the same where every replica held the adapter already
    rollbacks: Sequence[Swap]


async def _run(stage: Stage, scale: Scale) -> Measured:
    """Clients and operator share one event loop: two threads would take the interpreter from one another."""
    storm, share = stage.storm, math.ceil(scale.requests / (scale.swaps + 1))
    promotes, loaded, rollbacks = list[Swap](), list[Swap](), list[Swap]()
    blowing = asyncio.create_task(storm.run())
    async with Line(storm.host, storm.port, stage.operator_key) as operator:
        await _answered(storm, share)
        storm.first_tokens.clear()
        await _answered(storm, max(scale.requests // 10, 20 * scale.clients))
        calm = list(storm.first_tokens)
        for number, name in enumerate(stage.adapters, start=1):
            promotes.append(await _swapped(operator, f"/ops/adapters/{name}/promote"))
            storm.newest = number
            if number > 1 and number % 10 == 0:  # back to the one before, and again to this one
                storm.newest = number - 1
                rollbacks.append(await _swapped(operator, "/ops/rollback"))
                loaded.append(await _swapped(operator, f"/ops/adapters/{name}/promote"))
                storm.newest = number
            await _answered(storm, share)
    storm.over = True
    await blowing
    swaps = [(swap.began, swap.ended) for swap in (*promotes, *loaded, *rollbacks)]
    later = storm.first_tokens[len(calm) :]
    return Measured(
        [seconds for _, seconds in calm],
        _met(later, _half_way(swaps)),
        _met(later, swaps),
        promotes,
        loaded,
        rollbacks,
    )


async def _answered(storm: Storm, more: int) -> None:
    """Returns when so many more have been, or too much is wrong."""
    enough = storm.answers + more
    while storm.answers < enough and len(storm.faults) <= _FAULTS:  # noqa: ASYNC110 - a look is cheaper than an event each
        await asyncio.sleep(_LOOK_SECONDS)


async def _swapped(operator: Line, path: str) -> Swap:
    began = time.perf_counter()
    reply = await operator.post(path, {})
    ended = time.perf_counter()
    if reply.status != 200:
        raise RuntimeError(f"{path} answered {reply.status}: {b''.join(reply.parts).decode()}")
    return Swap(began, ended, reply.body["flip_seconds"])


def _half_way(swaps: Sequence[Window]) -> list[Window]:
    """Between each swap and the next, unless they are close: whoever meets a swap is chosen in just the same way.

    (Those who met none would not do: who waits long meets more.)
    """
    in_order = sorted(swaps)
    far = [
        (end, start, end - begin)
        for (begin, end), (start, _) in itertools.pairwise(in_order)
        if start - end > 3 * (end - begin)
    ]
    return [((end + start - length) / 2, (end + start + length) / 2) for end, start, length in far]


def _met(first_tokens: Sequence[tuple[float, float]], windows: Sequence[Window]) -> list[float]:
    """The seconds of those who waited for their first token in one of the windows."""
    return [
        seconds
        for asked, seconds in first_tokens
        if any(began <= asked + seconds and asked <= ended for began, ended in windows)
    ]


def _report(stage: Stage, scale: Scale, measured: Measured) -> None:
    kinds = {kind: sum(fault.startswith(kind) for fault in stage.storm.faults) for kind in ("failed", "mixed", "stale")}
    print(
        f"swaps: {stage.name}, 2 replicas, {scale.clients} clients: {scale.swaps} swaps, {stage.storm.answers} requests"
    )
    print("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()), *stage.storm.faults[:3], sep="\n  ")
    first_tokens = (measured.calm, measured.between, measured.swapping)
    before, between, during = (percentile(seconds, 0.99) for seconds in first_tokens)
    print(
        f"  first token p99: {1000 * before:.1f} ms before, {1000 * between:.1f} ms between swaps, "
        f"{1000 * during:.1f} ms during one ({during / before:.2f} x, {during / between:.2f} x)"
    )
    print("                                                        p50 ms    p99 ms   most")
    for name, values in (
        ("promote: verify, load, warm up everywhere; flip", [swap.seconds for swap in measured.promotes]),
        ("promote of a loaded adapter, to the last replica", [swap.seconds for swap in measured.loaded]),
        ("rollback, to the last replica", [swap.seconds for swap in measured.rollbacks]),
        ("of a promote: route row and flip of all replicas", [swap.flip_seconds for swap in measured.promotes]),
    ):
        print(f"  {name:50}{milliseconds(values, 0.5, 0.99, 1.0)}")
    for replica, bound in sorted(_flips(stage).items()):
        print(f"  flip within replica {replica}: p99 at most {1000 * bound:.1f} ms")


def _flips(stage: Stage) -> dict[str, float]:
    """By replica the bucket's bound, in seconds, below which 99 % of its flips are."""
    headers = {"authorization": f"Bearer {stage.operator_key}"}
    metrics = httpx.get(f"http://{stage.storm.host}:{stage.storm.port}/metrics", headers=headers, timeout=60)
    buckets: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(metrics.raise_for_status().text):
        for sample in family.samples:
            if sample.name == f"{_FLIPS}_bucket" and sample.labels["phase"] == "flip":
                buckets.setdefault(sample.labels["replica"], []).append((float(sample.labels["le"]), sample.value))
    return {
        replica: min(bound for bound, count in counts if count >= 0.99 * max(counts)[1])
        for replica, counts in buckets.items()
    }


@contextmanager
def _fake(folder: Path, scale: Scale) -> Iterator[Stage]:
    """Answers of 8 tokens in 16 ms: a storm of requests, and each outlasts a flip."""
    with fake_cluster(folder, free_port(), tokens=8, token_seconds=0.002) as cluster:
        adapters = [files.name for files in cluster.publish(*range(1, scale.swaps + 1))]
        server = cluster.settings.server
        storm = Storm(
            server.host, server.port, cluster.keys["app"], clients=scale.clients, pause_seconds=_PAUSE_SECONDS
        )
        yield Stage("fake engine", storm, cluster.keys["operator"], adapters)


@contextmanager
def _real(folder: Path, scale: Scale) -> Iterator[Stage]:
    """The seedling on vLLM, as `heliotrope up` runs it."""
    from service import model, node
    from service.postgres.embedded import EmbeddedDatabase
    from service.settings import load
    from tests.adapters import published_adapters

    state, port = folder / "state", free_port()
    state.mkdir()
    overrides = {"state": str(state), "server": {"port": port}, "serving": {"replicas": 2}}
    published = published_adapters(model.resolve("seedling"), folder, scale.swaps)
    with node.running(load(environment={}, overrides=overrides)):

        async def publish() -> None:
            store = Store(EmbeddedDatabase(state / "database").url)
            await register(store, published)
            await store.close()

        asyncio.run(publish())
        keys = json.loads((state / KEYS_FILE).read_text())
        storm = Storm("127.0.0.1", port, keys["app"], clients=scale.clients, tokens=24, authored=False)
        yield Stage("the seedling on vLLM", storm, keys["operator"], [files.name for files in published.values()])


if __name__ == "__main__":
    main(sys.argv[1:])
