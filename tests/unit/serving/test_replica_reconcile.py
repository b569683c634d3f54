"""How a replica catches up with the route, at its start and when it has missed something."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path

import pytest

from serving.adapters import WEIGHTS
from serving.contracts import AdapterFiles, Route
from serving.errors import AdapterRefused, RequestRefused
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import flip_byte, write_adapter
from tests.fakes import EngineDead, FakeEngine, FakeJournal
from tests.replica_acts import BODY, SHOP, begin, finish, promote


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFiles]:
    folder = tmp_path_factory.mktemp("published")
    return [write_adapter(folder / str(ordinal), ordinal) for ordinal in range(1, 13)]


@pytest.fixture
def journal(published: list[AdapterFiles]) -> FakeJournal:
    return FakeJournal(*published)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def replica(engine: FakeEngine, journal: FakeJournal, tmp_path: Path) -> Replica:
    replica = Replica("one", engine, journal, tmp_path, ServingSettings())
    await replica.start()
    return replica


# --- catching up --------------------------------------------------------------------------------------


async def test_a_missed_flip_is_caught_up_by_reading_the_route(
    replica: Replica, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    journal.current = Route(generation=5, stable=published[1].name, previous=published[0].name)
    await replica.reconcile()
    status = replica.status()
    assert (status.generation, status.stable, status.error) == (5, published[1].name, None)
    assert status.loaded == tuple(sorted(files.name for files in published[:2]))


async def test_a_replica_that_missed_several_flips_catches_up_when_there_is_room_and_never_half(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    names = [files.name for files in published[:5]]
    await promote(journal, replica, names[0])
    engine.flowing.clear()
    stream = await begin(replica)
    await promote(journal, replica, names[1])
    await promote(journal, replica, names[2])
    journal.current = Route(generation=9, stable=names[3], previous=names[4])
    await replica.reconcile()  # three places are taken, and two are needed
    engine.flowing.set()
    assert (replica.status().generation, (await replica.chat(BODY, SHOP)).adapter) == (3, names[2])
    assert await finish(stream) == {names[0]}
    await replica.reconcile()
    assert engine.loaded == set(names[3:])
    assert (replica.status().error, (await replica.chat(BODY, SHOP)).adapter) == (None, names[3])


async def test_flips_and_polls_at_the_same_time_leave_the_route_loaded(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    """A poll that still read the old route must not take away what a flip is loading for the new one."""
    for generation, (stable, previous) in enumerate(itertools.pairwise(files.name for files in published[:12]), 1):
        polls = [asyncio.create_task(replica.reconcile()) for _ in range(3)]
        flip = asyncio.create_task(replica.flip(Route(generation=generation, stable=stable, previous=previous)))
        polls += [asyncio.create_task(replica.reconcile()) for _ in range(3)]
        await asyncio.gather(flip, *polls)
        assert engine.loaded >= {stable, previous}
        assert (await replica.chat(BODY, SHOP)).adapter == stable
        journal.current = Route(generation=generation, stable=stable, previous=previous)


async def test_while_it_cannot_catch_up_a_replica_serves_on_and_says_why(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    await promote(journal, replica, published[0].name)
    engine.unloadable.add(published[1].name)
    journal.current = Route(generation=2, stable=published[1].name, previous=published[0].name)
    await replica.reconcile()
    status = replica.status()
    assert status.error is not None
    assert published[1].name in status.error
    assert (status.generation, (await replica.chat(BODY, SHOP)).adapter) == (1, published[0].name)
    engine.unloadable.clear()
    await replica.reconcile()
    assert (replica.status().generation, replica.status().error) == (2, None)


async def test_without_the_store_a_replica_serves_what_it_has(
    replica: Replica, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    await promote(journal, replica, published[0].name)
    journal.away = True
    await replica.reconcile()
    status = replica.status()
    assert (status.stable, status.error) == (published[0].name, "ConnectionError: the store is away")
    journal.away = False
    await replica.reconcile()
    assert replica.status().error is None


# --- starting -----------------------------------------------------------------------------------------


async def test_a_starting_replica_loads_what_the_route_names_before_it_is_ready(
    engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles], tmp_path: Path
) -> None:
    stable, previous = published[0].name, published[1].name
    journal.current = Route(generation=7, stable=stable, previous=previous)
    replica = Replica("one", engine, journal, tmp_path, ServingSettings())
    await replica.start()
    assert engine.loaded == {stable, previous}
    assert set(engine.history) == {(what, name) for what in ("load", "warm_up") for name in (stable, previous)}
    assert (await replica.chat(BODY, SHOP)).adapter == stable


async def test_a_corrupt_adapter_that_answers_nobody_by_default_keeps_no_replica_from_starting(
    engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles], tmp_path: Path
) -> None:
    stable, candidate = published[0].name, published[1].name
    spoiled = write_adapter(tmp_path / "spoiled", ordinal=99)
    journal.adapters[spoiled.name] = spoiled
    shutil.copy(Path(spoiled.directory) / WEIGHTS, tmp_path / "sound")
    flip_byte(Path(spoiled.directory) / WEIGHTS)
    journal.current = Route(generation=3, stable=stable, previous=spoiled.name, candidate=candidate, candidate_share=1)
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    await replica.start()
    status = replica.status()
    assert (status.generation, status.stable, set(status.loaded)) == (3, stable, {stable, candidate})
    assert set(status.wanted) == {stable, candidate, spoiled.name}
    assert status.error is not None and spoiled.name in status.error
    assert (await replica.chat(BODY, SHOP)).adapter == candidate
    with pytest.raises(RequestRefused, match=spoiled.name) as refused:
        await replica.chat(BODY | {"model": "policy@previous"}, SHOP)
    assert (refused.value.status, refused.value.code) == (503, "adapter_unavailable")
    shutil.copy(tmp_path / "sound", Path(spoiled.directory) / WEIGHTS)
    assert (await replica.prepare(spoiled)).error is None, "an operator who mended it need not wait"
    await replica.reconcile()
    assert replica.status().error is None
    assert (await replica.chat(BODY | {"model": "policy@previous"}, SHOP)).adapter == spoiled.name


@pytest.mark.parametrize("fault", ["corrupt", "unknown", "no token", "another base"])
async def test_a_replica_whose_route_cannot_be_served_does_not_start(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, fault: str
) -> None:
    spoiled = write_adapter(tmp_path / "spoiled", ordinal=99)
    journal.current = Route(generation=1, stable=spoiled.name)
    if fault != "unknown":
        journal.adapters[spoiled.name] = spoiled
    if fault == "corrupt":
        flip_byte(Path(spoiled.directory) / WEIGHTS)
    if fault == "no token":
        engine.unusable.add(spoiled.name)
    if fault == "another base":
        engine.base_fingerprint = "c" * 64
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    with pytest.raises((AdapterRefused, EngineDead), match=spoiled.name):
        await replica.start()
    assert engine.loaded == set()
