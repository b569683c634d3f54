"""Single thumbs: votes that found no partner, in rounds whose objective learns from them all the same."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.contracts import RoundState
from service.preferences import voter
from service.store.store import Store
from service.votes import Rating
from tests.small_service import SmallService
from training.contracts import HELD_OUT, TRAIN
from training.snapshot import SnapshotRow, iterate

PAIRED = ["first question", "second question", "third question"]
ALONE = [f"alone {number}" for number in range(7)]


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    """Its users have compared answers to some questions, and only liked or disliked those to others."""
    small = await SmallService.start(store, tmp_path)
    await small.like(*PAIRED)
    for number, question in enumerate(ALONE):
        await small.thumb(question, list(Rating)[number % 2], user=f"user {number}")
    return small


def _rows(small: SmallService) -> list[SnapshotRow]:
    return list(iterate(Path(small.trainer.started[-1].snapshot)))


def _sides(row: SnapshotRow) -> tuple[bool, bool]:
    return row.chosen_token_ids is not None, row.rejected_token_ids is not None


async def test_a_round_of_pairs_leaves_thumbs_alone(small: SmallService) -> None:
    ended = await small.round()
    assert {_sides(row) for row in _rows(small)} == {(True, True)}
    assert ended.funnel is not None
    assert ended.funnel["left_out"] == {"no_partner": 7}


async def test_a_mixed_round_learns_from_both_and_learns_each_once(small: SmallService) -> None:
    ended = await small.round(objective="dpo+kto")
    assert ended.state is RoundState.PROMOTED
    rows = _rows(small)
    assert [_sides(row) for row in rows].count((True, True)) == 3
    assert [_sides(row) for row in rows].count((True, False)) == 4
    assert [_sides(row) for row in rows].count((False, True)) == 3
    assert {row.split for row in rows if not all(_sides(row))} == {TRAIN, HELD_OUT}
    assert {row.voter for row in rows if not all(_sides(row))} == {voter("shop", f"user {n}") for n in range(7)}
    assert small.trainer.started[-1].objective == "dpo+kto"
    after = await small.rounds.preview("dpo+kto")
    assert (after.pairs, after.thumbs, after.left_out) == (0, 0, {"already_learned": 13})


async def test_a_round_of_thumbs_alone_has_its_pairs_too_for_training_takes_them_apart(small: SmallService) -> None:
    ended = await small.round(objective="kto", min_pairs=10)
    assert ended.state is RoundState.PROMOTED
    rows = _rows(small)
    assert [all(_sides(row)) for row in rows if row.split == TRAIN].count(True) == 2
    assert [all(_sides(row)) for row in rows if row.split == HELD_OUT].count(True) == 1
    assert len(rows) == 2 + 1 + 7
    assert (await small.rounds.preview("kto")).left_out == {"already_learned": 13}


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ("kto", "10 new pairs and thumbs, 11 are needed (min_pairs): 1 are missing"),
        ("dpo+kto", "3 new pairs, 11 are needed (min_pairs): 8 are missing"),
        ("dpo", "3 new pairs, 11 are needed (min_pairs): 8 are missing"),
    ],
)
async def test_thumbs_count_where_nothing_else_is_learned_from(
    small: SmallService, objective: str, reason: str
) -> None:
    ended = await small.round(objective=objective, min_pairs=11)
    assert (ended.state, ended.reason) == (RoundState.FAILED, reason)
    answer = await (await small.operator()).post(
        "/ops/rounds", json={"objective": objective, "min_pairs": 11, "dry_run": True}
    )
    assert (answer.json()["enough"], answer.json()["objective"]) == (False, objective)


async def test_a_vote_says_that_it_is_a_thumb(small: SmallService) -> None:
    operator = await small.operator()

    async def statuses(query: str) -> dict[str, int]:
        votes = (await operator.get(f"/ops/preferences{query}")).json()["votes"]
        return {status: [v["status"] for v in votes].count(status) for status in {v["status"] for v in votes}}

    assert await statuses("") == {"paired": 6, "left_out": 7}
    assert await statuses("?objective=dpo%2Bkto") == {"paired": 6, "thumb": 7}
    assert await statuses("?objective=kto&status=thumb") == {"thumb": 7}
    refused: httpx.Response = await operator.get("/ops/preferences?objective=nonsense")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "objective")
