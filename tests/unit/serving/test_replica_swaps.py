"""A swap under traffic: prepare, flip, catch up, unload; and that no request ever notices."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from serving.adapters import WEIGHTS
from serving.contracts import BASE, AdapterFiles, Route
from serving.errors import NoRoom
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import flip_byte, write_adapter
from tests.fakes import FakeEngine, FakeJournal, authors, until
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


# --- the flip -----------------------------------------------------------------------------------------


async def test_requests_finish_on_the_adapter_they_began_with_and_new_ones_get_the_new(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    old, new = published[0].name, published[1].name
    await promote(journal, replica, old)
    engine.flowing.clear()
    before = await begin(replica)
    waiting = asyncio.create_task(replica.chat(BODY, SHOP))
    await until(lambda: replica.status().in_flight == {old: 2})
    await promote(journal, replica, new)
    after = await begin(replica)
    assert replica.status().in_flight == {old: 2, new: 1}
    engine.flowing.set()
    assert (await finish(before), await finish(after)) == ({old}, {new})
    whole = await waiting
    assert whole.body is not None
    assert authors(whole.body["choices"][0]["message"]["content"]) == {old}
    assert {record.adapter for record in journal.records} == {old, new}


async def test_serving_goes_on_while_an_adapter_is_prepared(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles]
) -> None:
    engine.loading.clear()
    preparing = asyncio.create_task(replica.prepare(published[0]))
    for _ in range(10):
        assert (await replica.chat(BODY, SHOP)).adapter == BASE
    assert not preparing.done()
    engine.loading.set()
    assert (await preparing).error is None
    assert replica.status().stable == BASE, "only the flip changes who answers"


async def test_a_prepared_adapter_is_verified_loaded_and_tried_in_that_order(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles], tmp_path: Path
) -> None:
    name = published[0].name
    prepared = await replica.prepare(published[0])
    assert (prepared.replica, prepared.adapter, prepared.error) == ("one", name, None)
    assert engine.history == [("load", name), ("warm_up", name)]
    assert engine.opened == [str(tmp_path / name)], "the engine loads this machine's copy, not the published files"
    assert (await replica.chat(BODY | {"model": name}, SHOP)).adapter == name


async def test_preparing_twice_loads_once(replica: Replica, engine: FakeEngine, published: list[AdapterFiles]) -> None:
    name = published[0].name
    answers = await asyncio.gather(
        replica.prepare(published[0]), replica.prepare(published[0]), replica.prepare(published[0])
    )
    assert [answer.error for answer in answers] == [None] * 3
    assert engine.history == [("load", name), ("warm_up", name)]


async def test_an_older_route_changes_nothing(
    replica: Replica, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    await promote(journal, replica, published[0].name)
    await promote(journal, replica, published[1].name)
    before = replica.status()
    assert await replica.flip(Route(generation=1, stable=published[0].name)) == before
    assert await replica.flip(Route(generation=2, stable=BASE)) == before


async def test_a_rollback_is_only_a_flip(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    old, new = published[0].name, published[1].name
    await promote(journal, replica, old)
    await promote(journal, replica, new)
    loads = list(engine.history)
    await replica.flip(Route(generation=3, stable=old, previous=new))
    assert (await replica.chat(BODY, SHOP)).adapter == old
    assert engine.history == loads


async def test_a_flip_to_what_is_loaded_waits_for_no_load(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    """Not even for one turn of the event loop."""
    old, new, slow = (files.name for files in published[:3])
    await promote(journal, replica, old)
    assert (await replica.prepare(published[1])).error is None
    engine.loading.clear()
    preparing = asyncio.create_task(replica.prepare(published[2]))
    await until(lambda: replica.status().in_flight == {slow: 1})
    flip = replica.flip(Route(generation=2, stable=new, previous=old))
    with pytest.raises(StopIteration) as done:
        flip.send(None)
    assert done.value.value.stable == new
    assert not preparing.done()
    engine.loading.set()
    assert (await preparing).error is None


async def test_a_rollback_overtakes_a_flip_that_still_loads(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    old, new, slow = (files.name for files in published[:3])
    await promote(journal, replica, old)
    await promote(journal, replica, new)
    engine.loading.clear()
    late = asyncio.create_task(replica.flip(Route(generation=3, stable=slow, previous=new)))
    await until(lambda: not late.done() and slow in replica.status().wanted)
    assert (await replica.flip(Route(generation=4, stable=old, previous=new))).stable == old
    engine.loading.set()
    status = await late
    assert (status.generation, status.stable) == (4, old)


async def test_a_load_whose_caller_goes_away_ends_all_the_same(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    name = published[0].name
    engine.loading.clear()
    calls = [
        asyncio.create_task(replica.chat(BODY | {"model": name}, SHOP)),
        asyncio.create_task(replica.prepare(published[0])),
    ]
    await until(lambda: replica.status().in_flight == {name: 2})
    for call in calls:
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert replica.status().in_flight == {}
    engine.loading.set()
    assert (await replica.prepare(published[1])).error is None  # its turn comes after that load's
    assert engine.history[:2] == [("load", name), ("warm_up", name)]
    assert name in replica.status().loaded


# --- what goes wrong while preparing ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["gone", "corrupt", "other base", "engine", "no token", "store away"])
async def test_a_failing_prepare_says_why_and_changes_nothing(
    replica: Replica,
    engine: FakeEngine,
    journal: FakeJournal,
    published: list[AdapterFiles],
    tmp_path: Path,
    fault: str,
) -> None:
    await promote(journal, replica, published[0].name)
    before = replica.status()
    spoiled = write_adapter(tmp_path / "spoiled", ordinal=99)
    journal.adapters[spoiled.name] = spoiled
    if fault == "gone":
        shutil.rmtree(spoiled.directory)
    elif fault == "corrupt":
        flip_byte(Path(spoiled.directory) / WEIGHTS)
    elif fault == "other base":
        engine.base_fingerprint = "0" * 64
    elif fault == "engine":
        engine.unloadable.add(spoiled.name)
    elif fault == "no token":
        engine.unusable.add(spoiled.name)
    elif fault == "store away":
        journal.away = True
    prepared = await replica.prepare(spoiled)
    assert prepared.error is not None
    assert prepared.error.startswith(
        {"no token": "EngineDead: ", "store away": "ConnectionError: "}.get(fault, "AdapterRefused: ")
    )
    assert replica.status() == before
    assert engine.loaded == {published[0].name}
    journal.away = False
    assert (await replica.chat(BODY, SHOP)).adapter == published[0].name


async def test_an_adapter_that_was_mended_can_be_prepared(
    replica: Replica, journal: FakeJournal, tmp_path: Path
) -> None:
    """A refused copy is not kept: else this machine would refuse the adapter for ever."""
    files = write_adapter(tmp_path / "mended", ordinal=99)
    journal.adapters[files.name] = files
    shutil.copy(Path(files.directory) / WEIGHTS, tmp_path / "sound")
    flip_byte(Path(files.directory) / WEIGHTS)
    assert (await replica.prepare(files)).error is not None
    shutil.copy(tmp_path / "sound", Path(files.directory) / WEIGHTS)
    assert (await replica.prepare(files)).error is None


async def test_an_abandoned_adapter_is_unloaded(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    await promote(journal, replica, published[0].name)
    await replica.prepare(published[1])
    await replica.reconcile()
    assert engine.loaded == {published[0].name, published[1].name}, "a prepared adapter waits for its flip"
    await replica.abandon(published[1].name)
    assert engine.loaded == {published[0].name}
    await replica.abandon(published[1].name)
    await replica.abandon(published[0].name)
    assert engine.loaded == {published[0].name}, "what answers is never abandoned"


async def test_what_was_prepared_and_not_taken_up_gives_its_place_to_the_next(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    """A Conductor that dies between the phases leaves it behind."""
    stable, previous, *left, wanted = (files.name for files in published[:5])
    journal.current = Route(generation=1, stable=stable, previous=previous)
    for name in left:
        assert (await replica.prepare(journal.adapters[name])).error is None
    await replica.reconcile()
    assert engine.loaded == {stable, previous, *left}
    assert (await replica.prepare(journal.adapters[wanted])).error is None
    assert engine.loaded == {stable, previous, left[1], wanted}


async def test_what_was_prepared_and_not_taken_up_goes_after_a_while(
    engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles], tmp_path: Path
) -> None:
    replica = Replica("one", engine, journal, tmp_path, ServingSettings(idle_adapter_seconds=0))
    await replica.start()
    await replica.prepare(published[0])
    await replica.reconcile()
    assert engine.loaded == set()


# --- unloading ----------------------------------------------------------------------------------------


async def test_an_adapter_is_unloaded_only_when_no_request_and_no_route_needs_it(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    first, second, third = (files.name for files in published[:3])
    await promote(journal, replica, first)
    engine.flowing.clear()
    stream = await begin(replica)
    await promote(journal, replica, second)
    await replica.reconcile()
    assert engine.loaded == {first, second}, "the route still names it as the previous one"
    await promote(journal, replica, third)
    await replica.reconcile()
    assert engine.loaded == {first, second, third}, "a request still runs on it"
    engine.flowing.set()
    assert await finish(stream) == {first}
    await replica.reconcile()
    assert engine.loaded == {second, third}


async def test_when_every_place_is_in_use_a_prepare_finds_no_room(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    engine.flowing.clear()
    streams = []
    for files in published[:4]:
        await promote(journal, replica, files.name)
        streams.append(await begin(replica))
    refused = await replica.prepare(published[4])
    assert refused.error is not None
    assert refused.error.startswith(NoRoom.__name__)
    engine.flowing.set()
    assert [await finish(stream) for stream in streams] == [{files.name} for files in published[:4]]
    assert (await replica.prepare(published[4])).error is None


async def test_an_adapter_on_its_way_out_takes_no_new_requests_before_it_is_back(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles]
) -> None:
    name = published[0].name
    await replica.prepare(published[0])
    leaving = asyncio.create_task(replica.abandon(name))
    await until(lambda: ("unload", name) in engine.history)
    assert (await replica.chat(BODY | {"model": name}, SHOP)).adapter == name
    await leaving
    assert [what for what, _ in engine.history] == ["load", "warm_up", "unload", "load", "warm_up"]
