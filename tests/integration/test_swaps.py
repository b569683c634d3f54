"""Swaps on two replicas of Ray Serve while clients chat, and all that can go wrong in the middle of one.

Everything but the engine is real. Between the phases of a swap a test stops the world by what is there anyway: the row
of the route is locked, or an engine does not come back from a load.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from service.store.store import Store
from serving.contracts import AdapterFiles, Route
from tests.conftest import free_port
from tests.fake_cluster import FakeCluster, eventually, fake_cluster
from tests.storm import BODY, CHAT, Storm, storming

STUCK_SECONDS = 2.0


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    serving = {"stuck_seconds": STUCK_SECONDS, "adapter_places": 6}
    folder = tmp_path_factory.mktemp("swaps")
    with fake_cluster(folder, free_port(), token_seconds=0.002, sections={"serving": serving}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ordinals() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def files(fake: FakeCluster, ordinals: Iterator[int]) -> AdapterFiles:
    """A published adapter that nobody has answered with yet."""
    return fake.publish(next(ordinals))[0]


@pytest.fixture
def operator(fake: FakeCluster) -> Iterator[httpx.Client]:
    with fake.client("operator") as client:
        yield client


def promote(fake: FakeCluster, name: str) -> httpx.Response:
    with fake.client("operator") as operator:
        return operator.post(f"/ops/adapters/{name}/promote")


@contextmanager
def promoting(
    fake: FakeCluster, name: str, meanwhile: AbstractContextManager[None] | None = None
) -> Iterator[Future[httpx.Response]]:
    """The promotion, under way; done when the block and `meanwhile` are over."""
    with ThreadPoolExecutor(1) as pool, meanwhile or nullcontext():
        yield pool.submit(promote, fake, name)


@contextmanager
def locked_route(fake: FakeCluster) -> Iterator[None]:
    """Nobody changes the row as long as the block lasts; everybody may read it."""
    engine = create_engine(fake.store_url)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM route FOR UPDATE"))
        yield
    engine.dispose()


def storm(fake: FakeCluster) -> Storm:
    return Storm(fake.settings.server.host, fake.settings.server.port, fake.keys["app"])


def consistent(fake: FakeCluster, replicas: int = 2) -> bool:
    """Every replica serves what the row says, and holds that and nothing else."""
    status = fake.status()
    route = Route.model_validate(status["route"])
    agree = [
        (replica["generation"], replica["stable"], set(replica["loaded"]))
        == (route.generation, route.stable, route.wanted())
        for replica in status["replicas"]
    ]
    return len(agree) == replicas and all(agree)


def everywhere(fake: FakeCluster, name: str) -> bool:
    """Every replica holds it."""
    replicas = fake.status()["replicas"]
    return len(replicas) == 2 and all(name in replica["loaded"] for replica in replicas)


def stable(fake: FakeCluster) -> str:
    return fake.status()["route"]["stable"]


def answered_by(fake: FakeCluster) -> set[str]:
    """By whom, in enough answers to come to both replicas."""
    with fake.client("app") as app:
        return {app.post(CHAT, json=BODY).raise_for_status().json()["model"] for _ in range(16)}


# --- a swap -------------------------------------------------------------------------------------------


def test_swaps_and_rollbacks_under_load_fail_mix_and_delay_nothing(
    fake: FakeCluster, ordinals: Iterator[int], operator: httpx.Client
) -> None:
    chosen = [next(ordinals) for _ in range(5)]
    published = dict(zip(chosen, fake.publish(*chosen), strict=True))
    with storming(storm(fake)) as clients:
        for ordinal, files in published.items():
            assert promote(fake, files.name).status_code == 200
            clients.newest = ordinal
            enough = clients.answers + 3 * clients.clients
            eventually(lambda enough=enough: clients.answers > enough or bool(clients.faults))
        clients.newest = chosen[-2]
        assert operator.post("/ops/rollback").json()["route"]["stable"] == published[chosen[-2]].name
        enough = clients.answers + 3 * clients.clients
        eventually(lambda: clients.answers > enough or bool(clients.faults))
    assert clients.faults == []
    eventually(lambda: consistent(fake))


def test_a_replica_that_is_killed_between_prepare_and_flip_comes_back_with_the_new_adapter(
    fake: FakeCluster, files: AdapterFiles
) -> None:
    with promoting(fake, files.name, locked_route(fake)) as promotion:
        eventually(lambda: everywhere(fake, files.name))
        kill(fake, fake.orders.pids()[0])
    assert promotion.result().status_code == 200
    eventually(lambda: consistent(fake))
    assert answered_by(fake) == {files.name}


def test_a_replica_that_starts_while_others_prepare_is_prepared_too(fake: FakeCluster, files: AdapterFiles) -> None:
    lost, slow = fake.orders.pids()
    fake.orders.give("hold", slow)
    with promoting(fake, files.name) as promotion:
        eventually(lambda: fake.orders.holding(slow))
        kill(fake, lost)
        eventually(lambda: len(fake.status()["replicas"]) == 2)
        assert not everywhere(fake, files.name)
        fake.orders.withdraw("hold", slow)
    assert promotion.result().status_code == 200
    eventually(lambda: consistent(fake))
    assert answered_by(fake) == {files.name}


def test_a_conductor_that_dies_while_replicas_prepare_leaves_the_route_as_it_was(
    fake: FakeCluster, files: AdapterFiles
) -> None:
    before, pid = stable(fake), fake.orders.pids()[0]
    fake.orders.give("hold", pid)
    with promoting(fake, files.name) as promotion:
        eventually(lambda: fake.orders.holding(pid))
        fake.actor("ServeReplica:operations:Conductor").kill()
        fake.orders.withdraw("hold", pid)
        assert promotion.result().json()["error"]["code"] == "replica_lost"
    eventually(lambda: stable(fake) == before)
    assert promote(fake, files.name).status_code == 200
    eventually(lambda: consistent(fake))
    assert answered_by(fake) == {files.name}


def test_a_conductor_that_dies_between_row_and_flip_is_not_missed(fake: FakeCluster, files: AdapterFiles) -> None:
    async def change(store: Store) -> None:
        route = await store.route.read()
        new = Route(generation=route.generation + 1, stable=files.name, previous=route.stable)
        await store.route.change(route.generation, new, who="tess", action="promote", subject=files.name, detail={})

    fake.with_store(change)
    eventually(lambda: consistent(fake))
    assert answered_by(fake) == {files.name}


def test_two_promotions_at_once_end_in_one_state(fake: FakeCluster, ordinals: Iterator[int]) -> None:
    both = fake.publish(next(ordinals), next(ordinals))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda files: promote(fake, files.name), both))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert stable(fake) in {files.name for files in both}
    eventually(lambda: consistent(fake))
    assert answered_by(fake) == {stable(fake)}


def test_a_replica_that_cannot_prepare_keeps_all_of_them_as_they_were(fake: FakeCluster, files: AdapterFiles) -> None:
    before, pid = stable(fake), fake.orders.pids()[0]
    fake.orders.give("refuse", pid, files.name)
    answer = promote(fake, files.name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "prepare_failed")
    assert stable(fake) == before
    eventually(lambda: consistent(fake))  # the other replica has let go of it
    fake.orders.withdraw("refuse", pid)


# --- a replica that can no longer answer --------------------------------------------------------------


@pytest.mark.parametrize("order", ["stick", "die"])
def test_a_stuck_loop_and_a_dead_engine_are_replaced_and_the_new_replica_answers_with_the_routes_adapter(
    fake: FakeCluster, files: AdapterFiles, order: Any
) -> None:
    promote(fake, files.name).raise_for_status()
    lost = fake.orders.pids()[0]
    with storming(storm(fake)) as clients:
        clients.newest = int(files.name.split("-")[1])
        eventually(lambda: clients.answers > clients.clients)
        fake.orders.give(order, lost)
        eventually(lambda: lost not in fake.orders.pids() and len(fake.orders.pids()) == 2)
        eventually(lambda: consistent(fake))
        enough = clients.answers + 3 * clients.clients
        eventually(lambda: clients.answers > enough)
    untold = [fault for fault in clients.faults if not (fault.startswith("failed: ") and '"error"' in fault)]
    assert all("IncompleteReadError" in fault for fault in untold), untold  # streams: HAProxy can only break them off
    assert len(untold) <= clients.clients // 2
    assert answered_by(fake) == {files.name}


def kill(fake: FakeCluster, pid: int) -> None:
    """Returns when it is gone."""
    (process,) = (child for child in fake.process.children(recursive=True) if child.pid == pid)
    process.kill()
    eventually(lambda: pid not in fake.orders.pids())
