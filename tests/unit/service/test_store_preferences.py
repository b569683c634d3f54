"""What rounds are made from: open pairs, what earlier rounds took, and the content of pairs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.contracts import Round, RoundState
from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.matching import Matcher
from service.pairs import ImportedPair, Pair, Source
from service.preferences import voter
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion
from training.contracts import HELD_OUT, TRAIN
from training.snapshot import SnapshotRow, iterate, write_snapshot

MakeCompletion = Callable[..., Completion]
StartRound = Callable[..., Awaitable[Round]]


def _imported(name: str, rejected: str | None = "bad") -> ImportedPair:
    messages = ({"role": "user", "content": f"question {name}"},)
    return ImportedPair(id=name, messages=messages, chosen=f"good {name}", rejected=rejected and f"{rejected} {name}")


async def _import(store: Store, *pairs: ImportedPair) -> None:
    async with store.imports.begin() as incoming:
        await incoming.add(pairs)


def _of_file(id: str) -> Pair:
    return Pair(id=id, source=Source.IMPORT, prompt_digest=id, app=None, chosen=None, rejected=None)


async def _open(store: Store) -> list[Pair]:
    """All that a round may learn from by now."""
    await Matcher(store, PreferenceSettings(), QuarantineSettings()).catch_up()
    return (await store.preferences.open()).pairs


@pytest.fixture
async def voted_pair(store: Store, make_completion: MakeCompletion) -> Pair:
    """One pair from two votes: of `chatcmpl-1`, choice 1 over choice 0."""
    await store.completions.record(make_completion("chatcmpl-1", "bad", "good", prompt_token_ids=(7, 8)))
    for choice, rating in enumerate((Rating.DOWN, Rating.UP)):
        body = FeedbackBody(completion_id="chatcmpl-1", choice_index=choice, rating=rating, user="ada")
        await store.feedback.put("shop", body)
    (pair,) = await _open(store)
    return pair


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        (RoundState.TRAINING, True),
        (RoundState.PROMOTED, True),
        (RoundState.REJECTED, True),
        (RoundState.FAILED, False),
        (RoundState.CANCELLED, False),
    ],
)
async def test_a_round_has_learned_its_pairs_unless_it_broke_off(
    store: Store, start_round: StartRound, voted_pair: Pair, state: RoundState, counts: bool
) -> None:
    await _import(store, _imported("a"), _imported("b"))
    before = await _open(store)
    await start_round(state, [pair for pair in before if pair.id != "b"])
    after = await _open(store)
    assert after == ([pair for pair in before if pair.id == "b"] if counts else before)
    assert (await store.preferences.open()).left_out == ({"already_learned": 2} if counts else {})


@pytest.mark.parametrize(("state", "counts"), [(RoundState.REJECTED, True), (RoundState.FAILED, False)])
async def test_what_doubles_a_pair_of_a_round_is_used_up_and_freed_with_it(
    store: Store, start_round: StartRound, voted_pair: Pair, state: RoundState, counts: bool
) -> None:
    await _import(store, _imported("a"), _imported("b"), _imported("t", rejected=None))
    before = await _open(store)
    learned, *settled = sorted(
        (pair for pair in before if pair.id != "b"), key=lambda pair: pair.id == "a", reverse=True
    )
    await start_round(state, [learned], settled)
    assert await _open(store) == ([pair for pair in before if pair.id == "b"] if counts else before)
    assert (await store.preferences.open()).left_out == ({"already_learned": 2} if counts else {})


async def test_what_a_round_has_just_taken_is_not_open_though_nothing_was_matched_since(
    store: Store, start_round: StartRound, voted_pair: Pair
) -> None:
    n = (await start_round(RoundState.TRAINING, [voted_pair])).n
    assert (await store.preferences.open()).pairs == []
    assert await _open(store) == []
    await store.rounds.move(n, expect=RoundState.TRAINING, to=RoundState.CANCELLED)
    assert await _open(store) == [voted_pair], "and free again when the round breaks off after that"


async def test_a_thumb_that_was_imported_is_taken_and_freed_like_a_pair(store: Store, start_round: StartRound) -> None:
    await _import(store, _imported("t", rejected=None))
    (thumb,) = await _open(store)
    assert thumb.is_thumb
    n = (await start_round(RoundState.TRAINING, [thumb])).n
    assert await _open(store) == []
    await store.rounds.move(n, expect=RoundState.TRAINING, to=RoundState.FAILED)
    assert await _open(store) == [thumb]


async def test_pairs_of_earlier_rounds_are_counted_by_voter_and_day(
    store: Store, start_round: StartRound, voted_pair: Pair
) -> None:
    assert voted_pair.voted_at is not None
    learned = voted_pair.model_copy(update={"id": "x", "chosen": None, "rejected": None})
    await start_round(RoundState.PROMOTED, [learned])
    await start_round(RoundState.FAILED, [learned.model_copy(update={"id": "y"})])
    duplicate = learned.model_copy(update={"id": "d"})
    await start_round(RoundState.PROMOTED, [_of_file("z")], [duplicate])
    day = voted_pair.voted_at.astimezone(UTC).date()
    assert (await store.preferences.open()).counted == {(voter("shop", "ada"), day): 1}


async def test_the_time_is_the_database_s(store: Store) -> None:
    now = (await store.preferences.open()).now
    assert now.tzinfo is not None
    assert abs((datetime.now(UTC) - now).total_seconds()) < 3600


async def test_snapshot_rows_hold_what_was_served_or_the_imported_text(
    store: Store, voted_pair: Pair, tmp_path: Path
) -> None:
    await _import(store, _imported("a"), _imported("t", rejected=None))
    pairs = {pair.id: pair for pair in await _open(store)}
    weighted = voted_pair.model_copy(update={"weight": 0.5})
    rows = await store.preferences.snapshot_rows([weighted, pairs["a"], pairs["t"]], {"a"})
    said = voter("shop", "ada")
    assert rows == [
        SnapshotRow(voted_pair.id, TRAIN, [7, 8], list(b"good"), list(b"bad"), voter=said, weight=0.5),
        SnapshotRow(
            "a",
            HELD_OUT,
            messages=json.dumps([{"role": "user", "content": "question a"}]),
            chosen_text="good a",
            rejected_text="bad a",
        ),
        SnapshotRow("t", TRAIN, messages=json.dumps([{"role": "user", "content": "question t"}]), chosen_text="good t"),
    ]
    write_snapshot(tmp_path / "pairs.parquet", rows)
    assert list(iterate(tmp_path / "pairs.parquet")) == sorted(rows, key=lambda row: row.pair_id)


async def test_a_correction_is_a_text_beside_the_tokens_that_were_served(
    store: Store, make_completion: MakeCompletion, tmp_path: Path
) -> None:
    await store.completions.record(make_completion("chatcmpl-1", "bad", prompt_token_ids=(7, 8)))
    await store.feedback.put("shop", FeedbackBody(completion_id="chatcmpl-1", correction="as it should be"))
    (pair,) = await _open(store)
    (row,) = await store.preferences.snapshot_rows([pair], set())
    assert (row.prompt_token_ids, row.chosen_token_ids, row.rejected_token_ids) == ([7, 8], None, list(b"bad"))
    assert (row.chosen_text, row.rejected_text, row.messages) == ("as it should be", None, None)
    write_snapshot(tmp_path / "pairs.parquet", [row])
    assert list(iterate(tmp_path / "pairs.parquet")) == [row]


async def test_a_pair_whose_content_is_gone_gives_no_snapshot(store: Store, voted_pair: Pair) -> None:
    unknown = voted_pair.model_copy(update={"chosen": ("chatcmpl-9", 0)})
    with pytest.raises(KeyError):
        await store.preferences.snapshot_rows([unknown], set())
