"""`/healthz` and `/readyz`: alive is not ready, and each check says what is amiss."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text

from service.readiness import Readiness, of_replica
from service.store.database import known_schemas, newest_schema
from service.store.store import Store
from serving.contracts import BASE, Route
from serving.meter import Meter
from serving.probe import Probe
from serving.replica import Replica
from serving.settings import ServingSettings
from serving.shelf import Shelf
from tests.fakes import FakeEngine, FakeJournal
from tests.small_service import SmallService, client

ALL_WELL = {"store": "ok", "schema": "ok", "engine": "ok", "route": "ok"}


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
def anybody(small: SmallService) -> httpx.AsyncClient:
    """Without a key."""
    return client(small.operations_app(), None)


@pytest.fixture
def away(tmp_path: Path) -> Store:
    """A store that nobody reaches."""
    return Store(f"postgresql+psycopg://heliotrope@/postgres?host={tmp_path}")


# --- the service --------------------------------------------------------------------------------------


async def test_health_and_readiness_need_no_key(anybody: httpx.AsyncClient) -> None:
    health, ready = await anybody.get("/healthz"), await anybody.get("/readyz")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "degraded": False, "checks": ALL_WELL})
    assert ready.headers["cache-control"] == "no-store"


async def test_readiness_gets_a_token_from_each_engine(small: SmallService, anybody: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    before = [list(engine.history) for engine in small.engines]
    await anybody.get("/readyz")
    new = [engine.history[len(old) :] for engine, old in zip(small.engines, before, strict=True)]
    assert new == [[("warm_up", adapter.name)]] * 2


async def test_a_dead_engine_is_named_with_its_replica(small: SmallService, anybody: httpx.AsyncClient) -> None:
    small.engines[1].dead = True
    ready = await anybody.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    engine = "replica two: EngineDead: the engine's process is gone"
    assert ready.json()["checks"] == ALL_WELL | {"engine": engine}


@pytest.mark.parametrize("trouble", ["lagging", "none", "gone"])
async def test_the_service_is_not_ready_while_a_replica_does_not_serve_the_route(
    small: SmallService, anybody: httpx.AsyncClient, trouble: str
) -> None:
    adapter = await small.publish(1)
    if trouble == "lagging":
        small.host.after["prepare"] = _deafen(small)
        await small.registry.promote(adapter.name, who="tess")
        small.host.deaf.clear()
    if trouble == "none":
        small.host.deaf.update(small.host.replicas)
    if trouble == "gone":
        small.host.gone = True
    ready = await anybody.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    route = {"lagging": "replicas lag behind the route: two", "none": "no replica is running"}
    engine = {"lagging": "ok", "none": "no replica is running"}
    assert ready.json()["checks"] == ALL_WELL | {
        "engine": engine.get(trouble, "no replica answers"),
        "route": route.get(trouble, "no replica answers"),
    }


def _deafen(small: SmallService) -> Callable[[], Awaitable[None]]:
    async def deafen() -> None:
        small.host.deaf.add("two")

    return deafen


async def test_without_the_database_the_service_is_alive_but_not_ready(small: SmallService, away: Store) -> None:
    anybody = client(dataclasses.replace(small, store=away).operations_app(), None)
    assert (await anybody.get("/healthz")).status_code == 200
    ready = await anybody.get("/readyz")
    assert ready.status_code == 503
    assert "database does not answer" in ready.json()["checks"]["store"]
    assert ready.json()["checks"]["engine"] == "ok"


async def test_a_database_of_another_version_is_named(anybody: httpx.AsyncClient, database_engine: Engine) -> None:
    def write(schema: str) -> None:
        with database_engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :schema"), {"schema": schema})

    write("0001")
    try:
        ready = await anybody.get("/readyz")
    finally:
        write(newest_schema())
    assert ready.json()["ready"] is False
    assert "the schema 0001, and this version needs" in ready.json()["checks"]["schema"]


def test_the_newest_schema_is_that_of_the_last_migration() -> None:
    assert newest_schema() == max(known_schemas())


# --- one replica --------------------------------------------------------------------------------------


async def test_a_replica_says_for_itself_whether_it_is_ready(small: SmallService) -> None:
    anybody = client(small.chat_app(), None)
    assert (await anybody.get("/healthz")).json() == {"status": "ok"}
    ready = await anybody.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {"store": "ok", "engine": "ok", "route": "ok"})
    small.engines[1].dead = True  # of the other replica
    assert (await anybody.get("/readyz")).status_code == 200


@pytest.mark.parametrize(("needs_store", "ready"), [(False, True), (True, False)], ids=["answer", "refuse"])
async def test_a_replica_without_the_store_is_degraded_as_long_as_it_answers_all_the_same(
    small: SmallService, away: Store, needs_store: bool, ready: bool
) -> None:
    health = await of_replica(small.replica, away, needs_store=needs_store).look()
    assert (health.ready, health.degraded) == (ready, ready)
    assert "database does not answer" in health.checks["store"]
    assert health.checks["engine"] == "ok"


async def test_a_replica_that_lags_answers_all_the_same_and_is_degraded(small: SmallService) -> None:
    adapter = await small.publish(1)
    new = Route(generation=1, stable=adapter.name, previous=BASE)
    await small.store.route.change(0, new, who="tess", action="promote", subject=adapter.name, detail={})
    health = await of_replica(small.replica, small.store, needs_store=False).look()
    assert (health.ready, health.degraded) == (True, True)
    assert health.checks["route"] == "it serves generation 0, not 1: not yet"


# --- looking ------------------------------------------------------------------------------------------


async def test_many_who_ask_at_once_cost_one_look() -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)

    ready = Readiness({"one": look}, {"one"}, fresh_seconds=60)
    seen = await asyncio.gather(*(ready.look() for _ in range(100)))
    assert looks == 1
    assert {health.ready for health in seen} == {True}


async def test_a_look_that_never_ends_is_given_up() -> None:
    async def look() -> None:
        await asyncio.Event().wait()

    health = await Readiness({"stuck": look}, {"stuck"}, longest_seconds=0.01).look()
    assert (health.ready, health.checks) == (False, {"stuck": "no answer within 0.01 s"})


@pytest.fixture
def probed(tmp_path: Path) -> tuple[FakeEngine, Replica, Meter]:
    engine = FakeEngine()
    replica = Replica("one", engine, FakeJournal(), tmp_path, ServingSettings())
    return engine, replica, replica.meter


async def test_one_token_serves_all_who_ask_for_a_while(probed: tuple[FakeEngine, Replica, Meter]) -> None:
    engine, replica, _ = probed
    await replica.start()
    answers = await asyncio.gather(*(replica.probe() for _ in range(100)))
    assert engine.history == [("warm_up", BASE)]
    assert {(answer.replica, answer.error) for answer in answers} == {("one", None)}


async def test_an_engine_that_has_just_answered_somebody_is_left_alone(
    probed: tuple[FakeEngine, Replica, Meter],
) -> None:
    engine, replica, meter = probed
    await replica.start()
    meter.first_token(BASE, 0.01)
    assert (await replica.probe()).error is None
    assert engine.history == []


async def test_an_engine_that_gives_no_token_in_time_is_stuck(tmp_path: Path) -> None:
    engine, journal, meter = StuckEngine(), FakeJournal(), Meter("one")
    shelf = Shelf(engine, journal, tmp_path, meter, ServingSettings())
    await shelf.follow(await journal.route())
    answer = await Probe(engine, shelf, meter, patience_seconds=0.01).look()
    assert answer.error == "no token came within 0.01 s"
    assert engine.cancelled == [BASE]  # it was told that nobody waits any more
    assert shelf.in_flight == {}


class StuckEngine(FakeEngine):
    """No token comes from it."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[str] = []

    async def warm_up(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
