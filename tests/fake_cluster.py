"""The whole service as it runs, on Ray, with both of its applications and a real store; only the engine is a fake.

It runs in a process of its own, for a process can drive but one Ray cluster:

    python -m tests.fake_cluster PLAN.json      until its standard input ends
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.client import KEYS_FILE
from service.contracts import Adapter
from service.settings import Settings
from service.store.store import Store
from serving.adapters import sha256_of
from serving.contracts import AdapterFiles
from tests.adapter_files import FINGERPRINTS, WEIGHTS, write_adapter
from tests.remote_engine import Orders

_LOOK_SECONDS = 0.02
CPUS = 4  # logical: of Ray's accounts, not of the machine
READY = "ready at "


@dataclass(frozen=True)
class FakeCluster:
    url: str
    settings: Settings
    store_url: str
    orders: Orders
    keys: Mapping[str, str]  # of each role
    process: psutil.Process  # that owns all others
    stop: Callable[[], None]  # returns when it has ended; also at the end of the `with` block

    def client(self, role: str, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers(role), **{"timeout": 60, **options})

    def headers(self, role: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[role]}"}

    def status(self) -> dict[str, Any]:
        """Its `replicas` is empty while not all of them answer."""
        with self.client("operator") as operator:
            return operator.get("/ops/status").raise_for_status().json()

    def actor(self, title: str) -> psutil.Process:
        """The process of a Ray actor, such as `ServeReplica:operations:Conductor`."""
        below = self.process.children(recursive=True)
        (found,) = (process for process in below if title in _title(process))
        return found

    def publish(self, *ordinals: int) -> list[AdapterFiles]:
        """Adapters that came from outside."""
        published = [write_adapter(self.settings.state / "adapters" / str(ordinal), ordinal) for ordinal in ordinals]

        async def record(store: Store) -> None:
            await register(store, dict(zip(ordinals, published, strict=True)))

        self.with_store(record)
        return published

    def with_store(self, do: Callable[[Store], Awaitable[Any]]) -> Any:
        """What `do` gives, with a store of this process."""

        async def run() -> Any:
            store = Store(self.store_url)
            try:
                return await do(store)
            finally:
                await store.close()

        return asyncio.run(run())


@contextmanager
def fake_cluster(
    folder: Path,
    port: int,
    *,
    tokens: int = 4,
    token_seconds: float = 0.0,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[FakeCluster]:
    """Two replicas unless `sections`, those of the settings, say another number. Answers of so many tokens."""
    given = {name: dict(values) for name, values in (sections or {}).items()}
    given["serving"] = {"replicas": 2, "cpus_per_replica": 0.1} | given.get("serving", {})
    given["server"] = {"port": port} | given.get("server", {})
    settings = Settings.model_validate({"state": folder / "state", **given})
    orders = Orders(folder / "orders", tokens, token_seconds)
    for made in (settings.state, orders.folder):
        made.mkdir(parents=True)
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps({"settings": settings.model_dump(mode="json"), "tokens": tokens, "token_seconds": token_seconds})
    )
    command = [sys.executable, "-m", "tests.fake_cluster", str(plan)]
    # As where somebody works on another cluster: ours is not part of it.
    environment = {**os.environ, "RAY_ADDRESS": "another-cluster:6379"}
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdin and process.stdout

    def stop() -> None:
        process.communicate()  # which closes its standard input

    try:
        store_url = _ready(process.stdout, folder / "cluster.log")
        keys = json.loads((settings.state / KEYS_FILE).read_text())
        url = f"http://{settings.server.host}:{port}"
        yield FakeCluster(url, settings, store_url, orders, keys, psutil.Process(process.pid), stop)
    finally:
        stop()


def eventually(condition: Callable[[], bool]) -> float:
    """Waits until it is so; the seconds it took. While the service cannot say, it is not so."""
    began = time.monotonic()
    while not _holds(condition):
        threading.Event().wait(_LOOK_SECONDS)
    return time.monotonic() - began


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except (httpx.HTTPError, json.JSONDecodeError):
        return False


def _ready(lines: Iterator[str], log: Path) -> str:
    """The store's URL, once the cluster is ready."""
    for line in lines:
        if line.startswith(READY):
            return line.removeprefix(READY).strip()
    raise RuntimeError(f"the cluster did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def register(store: Store, published: Mapping[int, AdapterFiles], at: str | None = None) -> None:
    """Adapters, by ordinal, that came from outside and that no gate has seen; one whose files were put elsewhere is `at`."""
    for ordinal, files in published.items():
        adapter = Adapter(
            name=files.name,
            ordinal=ordinal,
            parent="base",
            round=None,
            weights_sha256=sha256_of(Path(files.directory) / WEIGHTS),
            manifest_sha256=files.manifest_sha256,
            directory=at or files.directory,
            pair_digest=None,
            verdict=None,
            created_at=datetime.now(UTC),
        )
        await store.adapters.publish(adapter, fence=None)


def main() -> None:
    from service import local_store
    from service.app import Blueprint
    from service.local_cluster import cluster, deploy

    file = Path(sys.argv[1])
    plan = json.loads(file.read_text())
    settings = Settings.model_validate(plan["settings"])
    orders = Orders(file.parent / "orders", plan["tokens"], plan["token_seconds"])
    with (
        local_store.running(settings) as store_url,
        cluster(settings.state, settings.server, cpus=CPUS, drain_seconds=settings.serving.longest_drain_seconds),
    ):
        local_store.first_keys(settings.state, store_url)
        deploy(Blueprint(settings, store_url, file.parent / "model", FINGERPRINTS, use_gpu=False, engine=orders))
        print(f"{READY}{store_url}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
