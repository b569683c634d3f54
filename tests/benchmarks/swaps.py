"""Swaps one after the other under full load: what fails, mixes or is stale, and how long anybody waits for one.

    python -m tests.benchmarks.swaps                      500 swaps, at least 50,000 requests, a fake engine
    python -m tests.benchmarks.swaps --swaps 50 --requests 5000
    python -m tests.benchmarks.swaps --real               50 swaps on the seedling with vLLM

Two replicas on Ray Serve, half of the clients stream. Each swap is to an adapter that nobody has answered with before.
"""

from __future__ import annotations

import argparse
import asyncio
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
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load_file

from service.client import KEYS_FILE
from service.store.store import Store
from serving.adapters import CONFIG, MANIFEST, WEIGHTS, sha256_of
from serving.contracts import AdapterFiles
from tests.benchmarks.figures import milliseconds, percentile
from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster, register
from tests.storm import Storm, storming

_FLIPS = "heliotrope_adapter_swap_duration_seconds"
_PAUSE_SECONDS = 0.05  # so that cores are left over: what waits for a core says nothing of swaps


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
        _report(stage, scale, _run(stage, scale))


@dataclass(frozen=True)
class Stage:
    """A running service, and the adapters to swap."""

    name: str
    storm: Storm
    operator: httpx.Client
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
    between: Sequence[float]  # of those who met no swap later: the machine was the same for them
    swapping: Sequence[float]  # of those who waited for it while a swap was going on
    promotes: Sequence[Swap]  # verify, load and warm up everywhere, flip
    loaded: Sequence[Swap]  # the same where every replica held the adapter already
    rollbacks: Sequence[Swap]


def _run(stage: Stage, scale: Scale) -> Measured:
    storm, share = stage.storm, math.ceil(scale.requests / (scale.swaps + 1))
    promotes, loaded, rollbacks = list[Swap](), list[Swap](), list[Swap]()
    with storming(storm):
        eventually(lambda: storm.answers >= share)
        storm.first_tokens.clear()
        eventually(lambda: storm.answers >= share + max(scale.requests // 10, 20 * scale.clients))
        calm = [seconds for _, seconds in storm.first_tokens]
        for number, name in enumerate(stage.adapters, start=1):
            promotes.append(_swapped(stage.operator, f"/ops/adapters/{name}/promote"))
            storm.newest = number
            if number > 1 and number % 10 == 0:  # back to the one before, and again to this one
                storm.newest = number - 1
                rollbacks.append(_swapped(stage.operator, "/ops/rollback"))
                loaded.append(_swapped(stage.operator, f"/ops/adapters/{name}/promote"))
                storm.newest = number
            enough = storm.answers + share
            eventually(lambda enough=enough: storm.answers >= enough or len(storm.faults) > 100)
    between, swapping = list[float](), list[float]()
    for asked, seconds in storm.first_tokens[len(calm) :]:
        meets = any(swap.began <= asked + seconds and asked <= swap.ended for swap in (*promotes, *loaded, *rollbacks))
        (swapping if meets else between).append(seconds)
    return Measured(calm, between, swapping, promotes, loaded, rollbacks)


def _swapped(operator: httpx.Client, path: str) -> Swap:
    began = time.perf_counter()
    answer = operator.post(path).raise_for_status().json()
    return Swap(began, time.perf_counter(), answer["flip_seconds"])


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
    for replica, bound in sorted(_flips(stage.operator).items()):
        print(f"  flip within replica {replica}: p99 at most {1000 * bound:.1f} ms")


def _flips(operator: httpx.Client) -> dict[str, float]:
    """By replica the bucket's bound, in seconds, below which 99 % of its flips are."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(operator.get("/metrics").raise_for_status().text):
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
        storm = _storm(cluster, scale)
        with cluster.client("operator") as operator:
            yield Stage("fake engine", storm, operator, adapters)


@contextmanager
def _real(folder: Path, scale: Scale) -> Iterator[Stage]:
    """The seedling on vLLM, as `heliotrope up` runs it."""
    from service import model, node
    from service.postgres.embedded import EmbeddedDatabase
    from service.settings import load

    state, port = folder / "state", free_port()
    state.mkdir()
    overrides = {"state": str(state), "server": {"port": port}, "serving": {"replicas": 2}}
    published = published_adapters(model.resolve("seedling"), folder, scale.swaps)
    with node.running(load(environment={}, overrides=overrides)) as url:

        async def publish() -> None:
            store = Store(EmbeddedDatabase(state / "database").url)
            await register(store, published)
            await store.close()

        asyncio.run(publish())
        keys = json.loads((state / KEYS_FILE).read_text())
        storm = Storm("127.0.0.1", port, keys["app"], clients=scale.clients, tokens=24, authored=False)
        headers = {"authorization": f"Bearer {keys['operator']}"}
        with httpx.Client(base_url=url, headers=headers, timeout=120) as operator:
            yield Stage("the seedling on vLLM", storm, operator, [files.name for files in published.values()])


def published_adapters(seedling: Path, folder: Path, count: int) -> dict[int, AdapterFiles]:
    """By ordinal: one random adapter of the seedling's, in so many strengths."""
    from tests.adapters import random_adapter
    from training.adapter import Lineage, write_adapter
    from training.contracts import LoraSpec
    from training.fingerprints import fingerprints

    drawn = random_adapter(seedling, folder / "drawn", seed=0)
    config = json.loads((drawn / CONFIG).read_text())
    lora, weights = LoraSpec(rank=config["r"], alpha=config["lora_alpha"]), load_file(drawn / WEIGHTS)
    published = {}
    for ordinal in range(1, count + 1):
        scaled = {name: values * np.float32(ordinal / count) for name, values in weights.items()}
        out = folder / str(ordinal)
        out.mkdir()
        lineage = Lineage(ordinal, None, 1, fingerprints(seedling), "d" * 64, training={})
        manifest = write_adapter(out, scaled, lora, sorted(config["target_modules"]), str(seedling), lineage)
        directory = out / "adapter"
        published[ordinal] = AdapterFiles(
            name=manifest.name, directory=str(directory), manifest_sha256=sha256_of(directory / MANIFEST)
        )
    return published


def _storm(cluster: FakeCluster, scale: Scale) -> Storm:
    server = cluster.settings.server
    return Storm(server.host, server.port, cluster.keys["app"], clients=scale.clients, pause_seconds=_PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
