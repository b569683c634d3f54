"""What becomes of pairs that say again what a round learns, or the opposite: they go where the pair goes that settles them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import pairs_fate
from service.contracts import RoundState
from service.store.store import Store
from service.tracing import trace
from service.votes import Rating
from tests.fake_trainer import RUNNING, Done, evaluation
from tests.small_service import SmallService
from training.contracts import REPLAY
from training.snapshot import iterate

TWICE = (
    "a question of a good many words, so that one of them more or less makes no large difference to what it asks for,"
    " nor to what anybody who reads it slowly would say in reply"
)
NEARLY = f"{TWICE} then or now"  # the answers to it are the same
ONCE = "another question"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


async def ask(small: SmallService) -> str:
    """Four pairs, of which two say what another one says; the completion of one of these."""
    await small.like(TWICE, ONCE)
    (again,) = await small.like(TWICE)
    await small.like(NEARLY)
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (2, {"duplicate": 2, "near_duplicate": 2})
    return again


def learned(small: SmallService, origin: str | None = None) -> int:
    """Rows of the last snapshot."""
    rows = iterate(Path(small.trainer.started[-1].snapshot))
    return sum(origin in (None, row.origin) for row in rows)


async def test_what_doubles_a_learned_pair_is_used_up_with_it_and_was_not_learned(small: SmallService) -> None:
    await ask(small)
    round = await small.round()
    assert (round.state, round.pairs, learned(small)) == (RoundState.PROMOTED, 2, 2)
    assert round.funnel is not None
    assert round.funnel["left_out"] == {"duplicate": 2, "near_duplicate": 2}, "so it was when the round collected"
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (0, {"already_learned": 8})


async def test_what_is_said_of_a_new_answer_afterwards_is_new_though_the_words_are_the_same(
    small: SmallService,
) -> None:
    await ask(small)
    await small.round()
    await small.registry.rollback(who="tess")  # so that the base answers, in its own words
    await small.like(TWICE)
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (1, {"already_learned": 8})


async def test_of_a_rejected_round_duplicates_are_used_up_until_they_are_released(store: Store, tmp_path: Path) -> None:
    bad = Done({"candidate": evaluation(accuracy=0.1), "current": evaluation(accuracy=0.9)})
    small = await SmallService.start(store, tmp_path, [bad])
    await ask(small)
    round = await small.round()
    assert round.state is RoundState.REJECTED
    assert (await small.rounds.preview()).left_out == {"already_learned": 8}
    assert await pairs_fate.decide(store, round.n, "released", who="tess", reason=None) == 2, "what it was judged by"
    assert (await small.rounds.preview()).left_out == {"duplicate": 2, "near_duplicate": 2}
    await pairs_fate.decide(store, round.n, "retired", who="tess", reason=None)
    assert (await small.rounds.preview()).left_out == {"already_learned": 8}


async def test_of_a_round_without_a_verdict_they_are_free_again(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, [RUNNING])
    await ask(small)
    round = await small.ask_for_round()
    while (await store.rounds.get(round.n)).state is not RoundState.TRAINING:
        await small.rounds.step()
    assert (await small.rounds.preview()).left_out == {"already_learned": 8}
    await small.rounds.cancel(round.n, who="tess")
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (2, {"duplicate": 2, "near_duplicate": 2})


async def test_a_minority_is_used_up_with_what_the_majority_taught(small: SmallService) -> None:
    await small.like(ONCE, "a third question")
    await small.like(TWICE, user="ada")
    await small.like(TWICE, user="bob")
    await small.like(TWICE, better=1, user="eve")
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (3, {"duplicate": 2, "contradicted": 2})
    assert (await small.round()).pairs == learned(small) == 3
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (0, {"already_learned": 8, "contradicted": 2}), (
        "or it learns the opposite"
    )


async def test_of_a_draw_nothing_is_used_up(small: SmallService) -> None:
    await small.like(ONCE, "a third question")
    await small.like(TWICE, user="ada")
    await small.like(TWICE, better=1, user="eve")
    assert (await small.round()).pairs == 2
    await small.registry.rollback(who="tess")  # so that the base answers, in its own words
    await small.like(TWICE, user="bob")
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out["contradicted"]) == (1, 2), "one vote more decides it"


async def test_duplicates_are_never_replayed(small: SmallService) -> None:
    await ask(small)
    first = await small.round()
    trained = await small.store.preferences.trained_in([first.n])
    await small.like(*(f"something new {n}" for n in range(8)))
    await small.round(replay=0.5)
    assert learned(small, REPLAY) == len(trained) == 1, "the other one was held out"


async def test_a_vote_in_a_duplicate_shows_which_round_passed_it_over_and_led_to_no_adapter(
    small: SmallService,
) -> None:
    again = await ask(small)
    round = await small.round()

    votes = (await small.store.lineage.follow("completion", again, "vote", forward=True, limit=9))[1]
    found = await trace(small.store, "vote", str(votes[0].id))
    pair = found.leads_to[0].shown[0]
    assert (pair["round"], pair["split"]) == (round.n, "settled")
    assert [step.total for step in found.leads_to] == [1, 0, 0, 0], "pair, round, adapter, completion"
    taken = (await trace(small.store, "round", str(round.n))).comes_from
    assert [(step.kind, step.total) for step in taken[:2]] == [("pair", 2), ("vote", 4)]


async def test_duplicates_are_exported_with_all_and_not_as_learned(small: SmallService) -> None:
    await ask(small)
    await small.round()
    await small.rounds.overview.bring_up_to_date()
    counts = [len(await small.store.exports.page(status, "", 10)) for status in ("open", "learned", "all")]
    assert counts == [0, 2, 4]


async def test_a_single_thumb_is_taken_by_a_round_that_learns_the_thumb_it_doubles(small: SmallService) -> None:
    await small.like("first question", "second question")
    for question, user in (("alone", "ada"), ("alone", "bob"), ("lonely", "eve")):
        await small.thumb(question, Rating.UP, user)
    await small.round()
    assert (await small.rounds.preview()).left_out == {"already_learned": 4, "no_partner": 3}
    assert (await small.rounds.preview("kto")).left_out == {"already_learned": 4, "duplicate": 1}
    assert (await small.round(objective="kto")).pairs == 2
    preview = await small.rounds.preview("kto")
    assert (preview.thumbs, preview.left_out) == (0, {"already_learned": 7})
