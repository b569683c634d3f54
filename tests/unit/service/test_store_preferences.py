from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service import preferences
from service.contracts import Round, RoundState
from service.pairs import ImportedPair, Pair
from service.store.completions import prompt_digest
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion
from training.contracts import HELD_OUT, TRAIN
from training.snapshot import SnapshotRow, iterate, write_snapshot

MakeCompletion = Callable[..., Completion]
StartRound = Callable[..., Awaitable[Round]]


def _imported(name: str) -> ImportedPair:
    messages = ({"role": "user", "content": f"question {name}"},)
    return ImportedPair(id=name, messages=messages, chosen=f"good {name}", rejected=f"bad {name}")


async def _vote(store: Store, completion_id: str, choice_index: int, rating: Rating) -> None:
    body = FeedbackBody(completion_id=completion_id, choice_index=choice_index, rating=rating)
    await store.feedback.put("shop", body)


@pytest.fixture
async def voted_pair(store: Store, make_completion: MakeCompletion) -> Pair:
    """One pair from two votes: of `chatcmpl-1`, choice 1 over choice 0."""
    await store.completions.record(make_completion("chatcmpl-1", "bad", "good", prompt_token_ids=(7, 8)))
    await _vote(store, "chatcmpl-1", 0, Rating.DOWN)
    await _vote(store, "chatcmpl-1", 1, Rating.UP)
    (pair,), _, _ = preferences.build(await store.preferences.effective_votes(), set(), [])
    return pair


async def test_an_effective_vote_carries_all_that_preferences_need(
    store: Store, make_completion: MakeCompletion
) -> None:
    await store.completions.record(make_completion("chatcmpl-1", "bad", "good", adapter="policy-0001-aaaaaaaa"))
    await _vote(store, "chatcmpl-1", 1, Rating.UP)
    (vote,) = await store.preferences.effective_votes()
    assert (vote.app, vote.user, vote.adapter, vote.rating) == ("shop", None, "policy-0001-aaaaaaaa", Rating.UP)
    assert (vote.completion_id, vote.choice_index) == ("chatcmpl-1", 1)
    assert (vote.text, vote.token_ids, vote.finish_reason) == ("good", tuple(b"good"), "stop")
    assert vote.prompt_digest == prompt_digest((1, 2, 3))


async def test_what_was_not_stored_has_no_text_and_no_tokens(store: Store, make_completion: MakeCompletion) -> None:
    await store.completions.record(make_completion("chatcmpl-1", store=False))
    await _vote(store, "chatcmpl-1", 0, Rating.UP)
    (vote,) = await store.preferences.effective_votes()
    assert (vote.text, vote.token_ids) == (None, None)


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
    imported = [_imported("a"), _imported("b")]
    await store.preferences.add_imported(imported)
    pairs, _, _ = preferences.build([], set(), imported[:1])
    await start_round(state, [voted_pair, *pairs])
    learned = {("chatcmpl-1", 0), ("chatcmpl-1", 1)}
    assert await store.preferences.learned_choices() == (learned if counts else set())
    assert await store.preferences.imported_new() == (imported[1:] if counts else imported)


async def test_importing_again_adds_only_what_is_new(store: Store) -> None:
    assert await store.preferences.add_imported([_imported("a"), _imported("b")]) == 2
    assert await store.preferences.add_imported([_imported("b"), _imported("c"), _imported("c")]) == 1
    assert await store.preferences.add_imported([]) == 0
    assert await store.preferences.imported_new() == [_imported("a"), _imported("b"), _imported("c")]


async def test_a_failing_import_adds_nothing(store: Store) -> None:
    unstorable = _imported("b").model_copy(update={"chosen": "nul \0"})
    with pytest.raises(Exception, match="NUL"):
        await store.preferences.add_imported([_imported("a"), unstorable])
    assert await store.preferences.imported_new() == []


async def test_snapshot_rows_hold_what_was_served_or_the_imported_text(
    store: Store, voted_pair: Pair, tmp_path: Path
) -> None:
    await store.preferences.add_imported([_imported("a")])
    (from_import,), _, _ = preferences.build([], set(), [_imported("a")])
    rows = await store.preferences.snapshot_rows([voted_pair, from_import], {"a"})
    assert rows == [
        SnapshotRow(voted_pair.id, TRAIN, [7, 8], list(b"good"), list(b"bad")),
        SnapshotRow(
            "a",
            HELD_OUT,
            messages=json.dumps([{"role": "user", "content": "question a"}]),
            chosen_text="good a",
            rejected_text="bad a",
        ),
    ]
    write_snapshot(tmp_path / "pairs.parquet", rows)
    assert list(iterate(tmp_path / "pairs.parquet")) == sorted(rows, key=lambda row: row.pair_id)


async def test_a_pair_whose_content_is_gone_gives_no_snapshot(store: Store, voted_pair: Pair) -> None:
    unknown = voted_pair.model_copy(update={"chosen": ("chatcmpl-9", 0)})
    with pytest.raises(KeyError):
        await store.preferences.snapshot_rows([unknown], set())
