"""Adapters asked for by name, what room there is for them, and what the store is told is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.contracts import AdapterFiles, Route
from serving.errors import NoRoom, RequestRefused, UnknownModel
from serving.leases import LEASE_SECONDS
from serving.meter import Meter
from serving.pins import Pin
from serving.settings import ServingSettings
from serving.shelf import Shelf
from tests.adapter_files import write_adapter
from tests.fakes import FakeEngine, FakeJournal, until

IDLE_SECONDS = 100.0
SOMEBODY = "somebody"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFiles]:
    folder = tmp_path_factory.mktemp("published")
    return [write_adapter(folder / str(ordinal), ordinal) for ordinal in range(1, 7)]


@pytest.fixture
def names(published: list[AdapterFiles]) -> list[str]:
    """The first is stable, the second the previous one."""
    return [files.name for files in published]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def journal(published: list[AdapterFiles]) -> FakeJournal:
    return FakeJournal(*published)


@pytest.fixture
async def shelf(engine: FakeEngine, journal: FakeJournal, names: list[str], clock: Clock, tmp_path: Path) -> Shelf:
    settings = ServingSettings(idle_adapter_seconds=IDLE_SECONDS)
    shelf = Shelf(engine, journal, tmp_path, Meter("one"), settings, clock)
    await shelf.follow(Route(generation=1, stable=names[0], previous=names[1]))
    return shelf


async def ask(shelf: Shelf, name: str) -> Pin:
    pin = await shelf.pin(name, SOMEBODY)
    assert pin.adapter == name
    return pin


# --- asked for by name --------------------------------------------------------------------------------


async def test_an_adapter_asked_for_by_name_is_loaded_once_and_stays_a_while(
    shelf: Shelf, engine: FakeEngine, names: list[str], clock: Clock
) -> None:
    pins = await asyncio.gather(*(ask(shelf, names[2]) for _ in range(20)))
    assert engine.history.count(("load", names[2])) == 1
    for pin in pins:
        pin.release()
    clock.now += IDLE_SECONDS - 1
    await shelf.tend()
    assert names[2] in engine.loaded
    (await ask(shelf, names[2])).release()
    clock.now += IDLE_SECONDS - 1
    await shelf.tend()
    assert names[2] in engine.loaded, "whoever asks again keeps it"
    clock.now += 1
    await shelf.tend()
    assert engine.loaded == set(names[:2])


async def test_the_one_asked_for_longest_ago_gives_way(
    shelf: Shelf, engine: FakeEngine, names: list[str], clock: Clock
) -> None:
    for name in (names[2], names[3], names[2], names[4]):
        (await ask(shelf, name)).release()
        clock.now += 1
    assert engine.loaded == {*names[:2], names[2], names[4]}


async def test_what_runs_and_what_the_route_names_gives_way_to_nobody(
    shelf: Shelf, engine: FakeEngine, names: list[str]
) -> None:
    running = await ask(shelf, names[2])
    with pytest.raises(NoRoom, match=r"raise serving\.adapter_places"):
        await shelf.pin(names[3], SOMEBODY)
    assert shelf.in_flight == {names[2]: 1}
    assert engine.loaded == set(names[:3])
    running.release()
    (await ask(shelf, names[3])).release()


async def test_however_many_are_asked_for_a_place_is_left_for_the_next_promotion(
    shelf: Shelf, engine: FakeEngine, journal: FakeJournal, names: list[str]
) -> None:
    running = await ask(shelf, names[2])
    (await shelf.try_out(journal.adapters[names[3]])).release()
    assert engine.loaded == set(names[:4])
    with pytest.raises(NoRoom):
        await shelf.pin(names[4], SOMEBODY)
    assert names[3] in engine.loaded, "what is tried for a promotion does not give way to a request"
    running.release()


async def test_a_promotion_takes_the_place_of_what_was_only_asked_for(
    shelf: Shelf, engine: FakeEngine, journal: FakeJournal, names: list[str]
) -> None:
    for name in names[2:4]:
        (await ask(shelf, name)).release()
    (await shelf.try_out(journal.adapters[names[4]])).release()
    assert engine.loaded == {*names[:2], names[3], names[4]}


async def test_many_at_once_are_answered_or_turned_away_and_nothing_is_left_pinned(
    shelf: Shelf, engine: FakeEngine, names: list[str]
) -> None:
    outcomes = await asyncio.gather(*(shelf.pin(name, SOMEBODY) for name in names[2:] * 5), return_exceptions=True)
    pins = [outcome for outcome in outcomes if isinstance(outcome, Pin)]
    assert {type(outcome) for outcome in outcomes} == {Pin, NoRoom}
    assert {pin.adapter for pin in pins} == {names[2]}
    for pin in pins:
        pin.release()
    assert shelf.in_flight == {}
    await shelf.retire()
    assert engine.loaded == set(names[:3])


@pytest.mark.parametrize(
    "name", ["policy-0099-aaaaaaaa", "policy-1-aaaaaaaa", "gpt-5", "policy@candidate", "", "x" * 9999]
)
async def test_a_name_that_was_never_published_is_unknown(shelf: Shelf, name: str) -> None:
    with pytest.raises(UnknownModel):
        await shelf.pin(name, SOMEBODY)
    assert shelf.in_flight == {}


async def test_however_many_names_are_guessed_the_store_is_asked_once_a_second(
    shelf: Shelf, journal: FakeJournal, clock: Clock
) -> None:
    for second in range(1, 4):
        for number in range(200):
            with pytest.raises(UnknownModel):
                await shelf.pin(f"policy-{number:04d}-00000000", SOMEBODY)
        assert journal.lookups == second
        clock.now += 1


async def test_an_adapter_is_known_by_its_name_a_second_after_it_was_published(
    shelf: Shelf, journal: FakeJournal, clock: Clock, tmp_path: Path
) -> None:
    files = write_adapter(tmp_path / "new", ordinal=50)
    with pytest.raises(UnknownModel):
        await shelf.pin(files.name, SOMEBODY)
    journal.adapters[files.name] = files
    clock.now += 1
    await ask(shelf, files.name)


async def test_an_adapter_whose_files_were_deleted_is_unknown(
    shelf: Shelf, journal: FakeJournal, names: list[str], clock: Clock
) -> None:
    (await ask(shelf, names[2])).release()
    clock.now += IDLE_SECONDS
    await shelf.tend()
    del journal.adapters[names[2]]
    for _ in range(2):
        with pytest.raises(UnknownModel):
            await shelf.pin(names[2], SOMEBODY)
    assert shelf.in_flight == {}


async def test_one_that_cannot_be_served_is_refused_without_trying_it_each_time(
    shelf: Shelf, engine: FakeEngine, names: list[str], clock: Clock
) -> None:
    engine.unloadable.add(names[2])
    for _ in range(2):
        with pytest.raises(RequestRefused) as refused:
            await shelf.pin(names[2], SOMEBODY)
        assert (refused.value.status, refused.value.code) == (503, "adapter_unavailable")
        engine.unloadable.clear()  # so that a second attempt would succeed
    clock.now += 60
    await ask(shelf, names[2])


async def test_a_candidate_that_this_replica_could_not_load_is_answered_for_by_the_stable_one(
    shelf: Shelf, engine: FakeEngine, names: list[str]
) -> None:
    engine.unloadable.add(names[2])
    await shelf.follow(Route(generation=2, stable=names[0], candidate=names[2], candidate_share=1.0))
    assert shelf.trouble is not None and names[2] in shelf.trouble
    assert (await shelf.pin("policy", SOMEBODY)).adapter == names[0]


# --- leases -------------------------------------------------------------------------------------------


async def test_the_store_is_told_what_is_needed_before_it_is_fetched(
    shelf: Shelf, engine: FakeEngine, journal: FakeJournal, names: list[str]
) -> None:
    assert journal.leases == {"one": frozenset(names[:2])}
    engine.loading.clear()
    asking = asyncio.create_task(ask(shelf, names[2]))
    await until(lambda: names[2] in journal.leases["one"])
    engine.loading.set()
    await asking


async def test_what_is_no_longer_needed_is_let_go_of(
    shelf: Shelf, journal: FakeJournal, names: list[str], clock: Clock
) -> None:
    pin = await ask(shelf, names[2])
    await shelf.follow(Route(generation=2, stable=names[0]))
    clock.now += IDLE_SECONDS
    await shelf.tend()
    await shelf.tend()
    assert journal.leases["one"] == {names[0], names[2]}, "a request still runs on it"
    pin.release()
    await shelf.tend()
    await shelf.tend()
    assert journal.leases["one"] == {names[0]}


async def test_a_lease_is_renewed_long_before_it_ends_and_not_all_the_time(
    shelf: Shelf, journal: FakeJournal, names: list[str], clock: Clock
) -> None:
    for waited, told in ((1, False), (LEASE_SECONDS / 3, True), (1, False)):
        journal.leases.clear()
        clock.now += waited
        await shelf.tend()
        assert ("one" in journal.leases) is told


async def test_whoever_follows_the_route_does_not_wait_for_a_slow_load(
    shelf: Shelf, engine: FakeEngine, journal: FakeJournal, names: list[str]
) -> None:
    engine.loading.clear()
    asking = asyncio.create_task(ask(shelf, names[2]))
    await until(lambda: names[2] in journal.leases["one"])
    tending = asyncio.create_task(shelf.tend())
    for _ in range(10):
        await asyncio.sleep(0)
    assert tending.done()
    engine.loading.set()
    await asking


async def test_what_cannot_be_leased_is_not_loaded(
    shelf: Shelf, engine: FakeEngine, journal: FakeJournal, names: list[str]
) -> None:
    journal.away = True
    with pytest.raises(ConnectionError):
        await shelf.try_out(journal.adapters[names[2]])
    assert engine.loaded == set(names[:2])
    assert shelf.in_flight == {}
