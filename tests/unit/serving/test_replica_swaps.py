"""A swap under traffic: prepare, flip, catch up, unload; and that no request ever notices."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path

import pytest

from serving.adapters import WEIGHTS
from serving.contracts import BASE, AdapterFiles, Caller, ChatAnswer, Route
from serving.errors import AdapterRefused, NoRoom, UnknownModel
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import flip_byte, write_adapter
from tests.fakes import EngineDead, FakeEngine, FakeJournal, authors, text_of, until

SHOP = Caller(app="shop")
BODY = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}


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


async def promote(journal: FakeJournal, replica: Replica, name: str) -> None:
    """What the registry does, on one replica."""
    prepared = await replica.prepare(name)
    assert prepared.error is None
    journal.current = Route(generation=journal.current.generation + 1, stable=name, previous=journal.current.stable)
    assert (await replica.flip(journal.current)).stable == name


async def begin(replica: Replica) -> ChatAnswer:
    """A stream that has given its first token."""
    answer = await replica.chat(BODY | {"stream": True}, SHOP)
    assert answer.stream is not None
    assert authors(text_of(await anext(answer.stream))) == {answer.adapter}
    return answer


async def finish(answer: ChatAnswer) -> set[str]:
    """The adapters that wrote the rest of the stream."""
    assert answer.stream is not None
    return {author async for event in answer.stream for author in authors(text_of(event))}


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
    preparing = asyncio.create_task(replica.prepare(published[0].name))
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
    prepared = await replica.prepare(name)
    assert (prepared.replica, prepared.adapter, prepared.error) == ("one", name, None)
    assert engine.history == [("load", name), ("warm_up", name)]
    assert engine.opened == [str(tmp_path / name)], "the engine loads this machine's copy, not the published files"
    assert (await replica.chat(BODY | {"model": name}, SHOP)).adapter == name


async def test_preparing_twice_loads_once(replica: Replica, engine: FakeEngine, published: list[AdapterFiles]) -> None:
    name = published[0].name
    answers = await asyncio.gather(replica.prepare(name), replica.prepare(name), replica.prepare(name))
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


# --- what goes wrong while preparing ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["unknown", "corrupt", "other base", "engine", "no token", "store away"])
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
    if fault == "unknown":
        del journal.adapters[spoiled.name]
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
    prepared = await replica.prepare(spoiled.name)
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
    assert (await replica.prepare(files.name)).error is not None
    shutil.copy(tmp_path / "sound", Path(files.directory) / WEIGHTS)
    assert (await replica.prepare(files.name)).error is None


async def test_an_abandoned_adapter_is_unloaded(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    await promote(journal, replica, published[0].name)
    await replica.prepare(published[1].name)
    await replica.reconcile()
    assert engine.loaded == {published[0].name, published[1].name}, "a prepared adapter waits for its flip"
    await replica.abandon(published[1].name)
    assert engine.loaded == {published[0].name}
    await replica.abandon(published[1].name)
    await replica.abandon(published[0].name)
    assert engine.loaded == {published[0].name}, "what answers is never abandoned"


async def test_the_next_prepare_replaces_one_that_nobody_took_up(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles]
) -> None:
    await replica.prepare(published[0].name)
    await replica.prepare(published[1].name)
    await replica.reconcile()
    assert engine.loaded == {published[1].name}


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
    refused = await replica.prepare(published[4].name)
    assert refused.error is not None
    assert refused.error.startswith(NoRoom.__name__)
    engine.flowing.set()
    assert [await finish(stream) for stream in streams] == [{files.name} for files in published[:4]]
    assert (await replica.prepare(published[4].name)).error is None


async def test_an_adapter_on_its_way_out_takes_no_new_requests(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles]
) -> None:
    name = published[0].name
    await replica.prepare(name)
    leaving = asyncio.create_task(replica.abandon(name))
    await until(lambda: ("unload", name) in engine.history)
    with pytest.raises(UnknownModel):
        await replica.chat(BODY | {"model": name}, SHOP)
    await leaving


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


@pytest.mark.parametrize("fault", ["corrupt", "unknown", "no token"])
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
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    with pytest.raises((AdapterRefused, EngineDead), match=spoiled.name):
        await replica.start()
    assert engine.loaded == set()
