"""A candidate that nobody can be asked about: it is tried again, and never rejected for that."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.contracts import Round, RoundState
from service.errors import GivenUp, Unavailable
from service.fleet import REPLICA_LOST
from service.patience import Patience
from service.postgres.trouble import STORAGE_UNAVAILABLE
from service.store.store import Store
from service.triggers.settings import RoundSettings
from serving.contracts import BASE
from serving.errors import HostAbsent, HostError
from tests.fake_trainer import Done
from tests.small_service import SmallService

MINUTES = 15


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await _service(store, tmp_path)


async def _service(
    store: Store, folder: Path, artifacts: Mapping[str, Any] | None = None, **rounds: Any
) -> SmallService:
    """Candidates sit an exam of one question."""
    exam = folder / "exam.jsonl"
    exam.write_text(json.dumps({"id": "one", "slice": "all", "prompt": "who are you?", "check": {"regex": "."}}))
    gate = {"suites": [str(exam)], "max_latency_ratio": 1000}
    sections = {"gate": gate, "rounds": {"patience_minutes": MINUTES} | rounds, "artifacts": artifacts or {}}
    small = await SmallService.start(store, folder / "state", [Done(samples=1)], sections=sections)
    await small.like("first question", "second question")
    return small


async def _finish(small: SmallService) -> Round:
    return await _go_on(small, await small.ask_for_round())


async def _go_on(small: SmallService, round: Round) -> Round:
    """As the loop does: where nobody answers it looks again."""
    while True:
        try:
            return await small.finish(round)
        except Unavailable:
            continue


def _killed(small: SmallService, name: str) -> Callable[[], Awaitable[None]]:
    """The replica dies while it is asked; another one takes its place at once."""

    async def die() -> None:
        replica = small.host.replicas[name]
        small.host.replicas = {**{n: r for n, r in small.host.replicas.items() if n != name}, name: replica}
        raise HostError(f"replica {name} died")

    return die


@pytest.mark.parametrize("call", ["score", "sample"])
async def test_a_sound_candidate_over_which_a_replica_dies_is_asked_of_another(small: SmallService, call: str) -> None:
    small.host.before[call] = _killed(small, "one")
    ended = await _finish(small)
    assert small.host.before == {}, "it was asked"
    assert ended.state is RoundState.PROMOTED, ended.reason
    waits = [event.data["why"] for event in await small.store.rounds.events(ended.n) if event.kind == "waits"]
    assert len(waits) == 1
    assert "replica one died" in waits[0]


async def test_a_candidate_over_which_replica_after_replica_dies_fails_and_is_not_rejected(
    store: Store, tmp_path: Path
) -> None:
    small = await _service(store, tmp_path, max_lost=2)
    deaths: list[str] = []

    async def die() -> None:
        deaths.append("one")
        small.host.before["sample"] = die
        raise HostError("its engine is gone")

    small.host.before["sample"] = die
    ended = await _finish(small)
    assert ended.state is RoundState.FAILED
    assert "2 replicas that were asked about the candidate died" in str(ended.reason)
    assert "its engine is gone" in str(ended.reason)
    assert len(deaths) == 2, "people are answered by them"
    assert ended.verdict is None, "nothing was found out about it"
    assert (await small.rounds.preview()).pairs == 2, "its pairs are free again"
    assert [engine.loaded for engine in small.engines] == [set(), set()]
    small.host.before.clear()
    again = await _finish(small)
    assert again.state is RoundState.PROMOTED, again.reason


async def test_a_candidate_waits_for_replicas_no_longer_than_patience_lasts(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, patience_minutes=1e-9)
    small.host.gone = True
    ended = await _finish(small)
    assert ended.state is RoundState.FAILED
    assert "nobody could be asked about the candidate" in str(ended.reason)
    assert "no replica answers" in str(ended.reason)
    assert (await small.rounds.preview()).pairs == 2


async def test_a_replica_without_a_place_is_asked_again_however_often(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, max_lost=1)
    asked = 0

    async def crowded() -> None:
        nonlocal asked
        asked += 1
        if asked < 5:
            small.host.before["score"] = crowded
            raise HostAbsent("score: every place is taken")

    small.host.before["score"] = crowded
    ended = await _finish(small)
    assert ended.state is RoundState.PROMOTED, ended.reason
    waits = [event for event in await small.store.rounds.events(ended.n) if event.kind == "waits"]
    assert len(waits) == 1, "the same is not told again and again"


class Fickle(MemoryFileSystem):
    """An object store that refuses the next few times when something is read whole."""

    protocol = "fickle"
    refuses: ClassVar[int] = 0

    def get_file(self, *args: Any, **options: Any) -> None:
        if Fickle.refuses > 0:
            Fickle.refuses -= 1
            raise ConnectionError("nobody listens")
        super().get_file(*args, **options)


fsspec.register_implementation("fickle", Fickle, clobber=True)


@pytest.mark.parametrize("times", [1, 4, 7])
async def test_a_candidate_waits_for_an_object_store_that_does_not_answer(
    store: Store, tmp_path: Path, times: int
) -> None:
    """Whoever reads from it just then: the service, or a replica that fetches the candidate."""
    small = await _service(store, tmp_path, artifacts={"url": f"fickle://bucket/{times}"}, max_lost=1)
    round = await small.ask_for_round()
    while (await store.rounds.get(round.n)).state is not RoundState.JUDGING:
        await small.rounds.step()
    Fickle.refuses = times
    ended = await _go_on(small, round)
    assert Fickle.refuses == 0, "it was asked"
    assert ended.state is RoundState.PROMOTED, ended.reason


async def test_a_replica_that_refuses_the_candidate_has_given_a_verdict(small: SmallService) -> None:
    round = await small.ask_for_round()
    while (current := await small.store.rounds.get(round.n)).state is not RoundState.JUDGING:
        await small.rounds.step()
    for engine in small.engines:
        engine.unloadable.add(str((current.report or {})["adapter_name"]))
    ended = await small.finish(round)
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("loadable: ")
    assert await small.answers_by() == {BASE}


# --- patience alone -----------------------------------------------------------------------------------

LOST = Unavailable("a replica died", code=REPLICA_LOST)
ABSENT = Unavailable("nobody is there", code="no_replica")
STORE = Unavailable("the database is away", code=STORAGE_UNAVAILABLE)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patience(clock: Clock) -> Patience:
    return Patience(RoundSettings(patience_minutes=MINUTES, max_lost=3), clock)


def test_patience_lasts_so_long_and_tells_once_why_it_waits(patience: Patience, clock: Clock) -> None:
    assert patience.bear(1, ABSENT)
    clock.seconds = MINUTES * 60 - 1
    assert not patience.bear(1, ABSENT)
    clock.seconds += 1
    with pytest.raises(GivenUp, match="for 15 minutes, so nothing is decided of it: nobody is there"):
        patience.bear(1, ABSENT)


def test_patience_begins_anew_when_all_was_answered_and_with_another_round(patience: Patience, clock: Clock) -> None:
    patience.bear(1, ABSENT)
    clock.seconds = MINUTES * 60
    patience.restore()
    assert patience.bear(1, ABSENT)
    clock.seconds *= 3
    assert patience.bear(2, ABSENT)


def test_a_few_replicas_are_risked_and_each_is_told_of(patience: Patience) -> None:
    assert patience.bear(1, LOST)
    assert patience.bear(1, LOST)
    with pytest.raises(GivenUp, match="3 replicas"):
        patience.bear(1, LOST)


def test_while_the_store_is_away_no_time_passes(patience: Patience, clock: Clock) -> None:
    patience.bear(1, STORE)
    clock.seconds = 10 * MINUTES * 60
    assert not patience.bear(1, STORE)
    assert patience.bear(1, ABSENT)
