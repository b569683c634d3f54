"""What becomes of the pairs of a round: kept, released, retired; and what later rounds make of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import pairs_fate
from service.contracts import RoundState
from service.errors import Conflict, NotFound
from service.store.store import Store
from tests.fake_trainer import RUNNING, Done, evaluation
from tests.small_service import SmallService
from training.contracts import REPLAY
from training.snapshot import iterate

QUESTIONS = [f"question {n}" for n in range(8)]


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


async def decide(small: SmallService, n: int, fate: pairs_fate.Fate) -> int:
    return await pairs_fate.decide(small.store, n, fate, who="tess", reason="a bad day")


async def taken_back(small: SmallService) -> int:
    """A round whose adapter answered and was rolled back; its number."""
    await small.like(*QUESTIONS)
    round = await small.round()
    assert round.state is RoundState.PROMOTED, round.reason
    await small.registry.rollback(who="tess")
    return round.n


async def test_by_default_pairs_of_a_rolled_back_round_stay_used_up(small: SmallService) -> None:
    n = await taken_back(small)
    assert (await small.store.rounds.get(n)).pairs_fate == "learned"
    assert (await small.rounds.preview()).left_out == {"already_learned": 16}


async def test_released_pairs_are_new_again_and_another_round_learns_them(small: SmallService) -> None:
    n = await taken_back(small)
    assert await decide(small, n, "released") == 8
    assert (await small.store.rounds.get(n)).pairs_fate == "released"
    assert (await small.rounds.preview()).pairs == 8
    again = await small.round()
    assert again.state is RoundState.PROMOTED, again.reason
    assert again.pair_digest == (await small.store.rounds.get(n)).pair_digest
    assert (await small.rounds.preview()).pairs == 0


async def test_retired_pairs_are_never_used_again(small: SmallService) -> None:
    n = await taken_back(small)
    assert await decide(small, n, "retired") == 8
    assert (await small.rounds.preview()).left_out == {"already_learned": 16}
    assert (await small.round()).state is RoundState.FAILED


async def test_a_retired_round_is_not_replayed_while_its_adapter_answers(small: SmallService) -> None:
    await small.like(*QUESTIONS)
    first = await small.round()
    await decide(small, first.n, "retired")
    await small.like("something new", "and another")
    assert await _replayed(small) == 0
    await decide(small, first.n, "learned")
    await small.like("newer still", "and another newer one")
    assert await _replayed(small) > 0


async def _replayed(small: SmallService) -> int:
    round = await small.round(replay=0.5)
    assert round.state is RoundState.PROMOTED, round.reason
    snapshot = (await small.store.rounds.work(round.n)).snapshot
    assert snapshot is not None
    return sum(row.origin == REPLAY for row in iterate(Path(snapshot)))


async def test_pairs_that_were_learned_twice_are_replayed_once(small: SmallService) -> None:
    n = await taken_back(small)
    await decide(small, n, "released")
    again = await small.round()
    await decide(small, n, "learned")
    trained = [pair.id for pair in await small.store.preferences.trained_in([n, again.n])]
    assert len(trained) == len(set(trained)) > 0


async def test_what_answers_has_learned_its_pairs_and_keeps_them(small: SmallService) -> None:
    await small.like(*QUESTIONS)
    first = await small.round()
    await small.like("something new", "and another")
    await small.round()
    with pytest.raises(Conflict, match="Roll back behind that round first") as refused:
        await decide(small, first.n, "released")
    assert refused.value.code == "still_answers"
    await small.registry.rollback(who="tess", to="base")
    assert await decide(small, first.n, "released") == 8


async def test_a_rejected_round_gives_its_pairs_back_on_request(store: Store, tmp_path: Path) -> None:
    bad = Done({"candidate": evaluation(accuracy=0.1), "current": evaluation(accuracy=0.9)})
    small = await SmallService.start(store, tmp_path, [bad])
    await small.like(*QUESTIONS)
    round = await small.round()
    assert round.state is RoundState.REJECTED
    assert (await small.rounds.preview()).pairs == 0
    await decide(small, round.n, "released")
    assert (await small.rounds.preview()).pairs == 8


async def test_decisions_are_audited_and_refused_where_there_is_nothing_to_decide(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, [RUNNING])
    with pytest.raises(NotFound):
        await decide(small, 7, "retired")
    await small.like(*QUESTIONS)
    running = await small.ask_for_round()
    with pytest.raises(Conflict, match="Wait for its end"):
        await decide(small, running.n, "retired")
    await small.rounds.cancel(running.n, who="tess")
    with pytest.raises(Conflict, match="free already"):
        await decide(small, running.n, "retired")
    small = await SmallService.start(store, tmp_path)
    round = await small.round()
    await decide(small, round.n, "retired")
    with pytest.raises(Conflict, match="retired already"):
        await decide(small, round.n, "retired")
    entry = (await store.audit.list())[0]
    assert (entry.who, entry.action, entry.subject) == ("tess", "pairs_retired", f"round {round.n}")
    assert entry.detail == {"pairs": 8, "was": "learned", "reason": "a bad day"}
