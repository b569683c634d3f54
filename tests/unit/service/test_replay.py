"""Older pairs in a new round: which, how many, and never those that would falsify the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts import RoundState
from service.pairs import Pair, Source
from service.replay import choose, replayed
from service.store.store import Store
from service.votes import Rating
from tests.fake_trainer import Done, evaluation
from tests.small_service import SmallService
from training.contracts import HELD_OUT, NEW, REPLAY, TRAIN
from training.snapshot import SnapshotRow, iterate


def _pair(id: str, prompt: str | None = None) -> Pair:
    return Pair(
        id=id, source=Source.IMPORT, prompt_digest=prompt or f"prompt {id}", app=None, chosen=None, rejected=None
    )


OLDER = [_pair(f"{n:02d}") for n in range(40)]


@given(new=st.integers(0, 1000), share=st.floats(0, 0.5))
def test_replayed_pairs_are_the_asked_share_of_all_training_pairs(new: int, share: float) -> None:
    older = replayed(new, share)
    assert older == pytest.approx(share * (new + older), abs=0.5)


def test_the_choice_is_the_same_whatever_the_order_and_another_in_every_round() -> None:
    def chosen(older: list[Pair], round: int, seed: int = 0) -> list[str]:
        return [pair.id for pair in choose(older, 16, 0.2, set(), seed=seed, round=round)]

    assert len(chosen(OLDER, 2)) == 4
    assert chosen(OLDER, 2) == chosen(OLDER[::-1], 2)
    assert len({tuple(chosen(OLDER, round)) for round in (2, 3, 4)} | {tuple(chosen(OLDER, 2, seed=1))}) == 4


def test_a_prompt_that_is_held_out_is_not_replayed() -> None:
    older = [_pair("a", "p"), _pair("b", "q")]
    assert [pair.id for pair in choose(older, 100, 0.5, {"p"}, seed=0, round=2)] == ["b"]


# --- in rounds ----------------------------------------------------------------------------------------


def _questions(batch: str, count: int = 8) -> list[str]:
    return [f"{batch} {number}" for number in range(count)]


async def _rows(small: SmallService) -> list[SnapshotRow]:
    return list(iterate(Path(small.trainer.started[-1].snapshot)))


def _ids(rows: list[SnapshotRow], **fields: str) -> set[str]:
    return {row.pair_id for row in rows if all(getattr(row, name) == value for name, value in fields.items())}


async def test_a_round_replays_what_a_promoted_one_has_trained_on(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    await small.like(*_questions("first"))
    await small.round()
    first = await _rows(small)
    await small.like(*_questions("second"))
    second_round = await small.round(replay=0.3)
    rows = await _rows(small)
    again = _ids(rows, origin=REPLAY)
    new = _ids(rows, origin=NEW, split=TRAIN)
    assert (len(new), len(again)) == (7, 3)
    assert again < _ids(first, split=TRAIN)
    assert again == _ids(rows, origin=REPLAY, split=TRAIN)
    assert second_round.funnel is not None
    assert (second_round.funnel["pairs_replayed"], second_round.pairs) == (3, 11)
    originals = {row.pair_id: row for row in first}
    for row in rows:
        if row.origin == REPLAY:
            assert row.chosen_token_ids == originals[row.pair_id].chosen_token_ids
    await small.like(*_questions("third"))
    assert (await small.round()).pairs == 8, "what was replayed is learned already, and no new pair"


async def test_rejected_and_rolled_back_rounds_are_not_replayed(store: Store, tmp_path: Path) -> None:
    rejected = Done({"candidate": evaluation(accuracy=0.1)})
    small = await SmallService.start(store, tmp_path, [Done()], [Done()], [rejected], [Done()])
    await small.like(*_questions("kept"))
    await small.round()
    kept = _ids(await _rows(small), split=TRAIN)
    await small.like(*_questions("taken back"))
    await small.round()
    await small.registry.rollback(who="tess")
    await small.like(*_questions("rejected"))
    assert (await small.round()).state is RoundState.REJECTED
    await small.like(*_questions("new", 20))
    await small.round(replay=0.5)
    again = _ids(await _rows(small), origin=REPLAY)
    assert again == kept


async def test_without_earlier_rounds_there_is_nothing_to_replay(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, replay=0.5)
    await small.like(*_questions("first"))
    ended = await small.round()
    assert (ended.state, ended.pairs) == (RoundState.PROMOTED, 8)
    assert ended.settings["replay"] == 0.5


async def test_an_imported_pair_is_replayed_as_it_was_imported(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    operator = await small.operator()
    lines = "\n".join(f'{{"prompt": "q {n}", "chosen": "good", "rejected": "bad"}}' for n in range(8))
    await operator.post("/ops/preferences/import", content=lines)
    await small.round()
    await small.like(*_questions("second"))
    await small.round(replay=0.5)
    again = [row for row in await _rows(small) if row.origin == REPLAY]
    assert len(again) == 7
    assert {(row.chosen_text, row.rejected_text, row.split) for row in again} == {("good", "bad", TRAIN)}


async def test_a_round_that_learns_from_pairs_alone_replays_no_thumbs(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    await small.like(*_questions("first"))
    for question in _questions("alone"):
        await small.thumb(question, Rating.UP)
    await small.round(objective="dpo+kto")
    for batch, objective, singles in (("second", "dpo", False), ("third", "dpo+kto", True)):
        await small.like(*_questions(batch, 50))  # so many that all older ones are replayed
        await small.round(objective=objective, replay=0.5)
        again = [row for row in await _rows(small) if row.origin == REPLAY]
        assert again
        assert any(row.rejected_token_ids is None for row in again) == singles
        assert HELD_OUT not in {row.split for row in again}
