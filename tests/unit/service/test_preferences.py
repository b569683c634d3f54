from __future__ import annotations

import hashlib
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pairs import ImportedPair, LeftOut, Pair
from service.preferences import build, hold_out
from service.votes import Rating, Vote

UP, DOWN = Rating.UP, Rating.DOWN


def _vote(seq: int, rating: Rating, answer: str, **fields: Any) -> Vote:
    """By default each vote is on a choice of its own, of one prompt and one app."""
    defaults: dict[str, Any] = {
        "app": "shop",
        "user": f"user-{seq}",
        "completion_id": f"c{seq}",
        "choice_index": 0,
        "adapter": "base",
        "prompt_digest": "p",
        "finish_reason": "stop",
        "text": answer,
        "token_ids": tuple(answer.encode()),
    }
    return Vote(seq=seq, rating=rating, **(defaults | fields))


def _imported(name: str) -> ImportedPair:
    return ImportedPair(id=name, messages=({"role": "user", "content": name},), chosen="good", rejected="bad")


def _matches(pairs: list[Pair]) -> list[tuple[object, object]]:
    return [(pair.chosen and pair.chosen[0], pair.rejected and pair.rejected[0]) for pair in pairs]


def test_an_up_and_a_down_vote_on_two_answers_to_one_prompt_make_a_pair() -> None:
    (pair,), funnel, reasons = build([_vote(1, DOWN, "bad"), _vote(2, UP, "good")], set(), [])
    assert (pair.chosen, pair.rejected, pair.votes) == (("c2", 0), ("c1", 0), (1, 2))
    assert (pair.origin, pair.app, pair.prompt_digest) == ("votes", "shop", "p")
    assert (funnel.votes, funnel.votes_in_pairs, funnel.pairs, funnel.left_out, reasons) == (2, 2, 1, {}, {})


def test_choices_of_one_completion_can_be_a_pair() -> None:
    votes = [_vote(1, UP, "good", completion_id="c"), _vote(2, DOWN, "bad", completion_id="c", choice_index=1)]
    (pair,), _, _ = build(votes, set(), [])
    assert (pair.chosen, pair.rejected) == (("c", 0), ("c", 1))


@pytest.mark.parametrize("other", [{"prompt_digest": "q"}, {"app": "other"}], ids=["prompt", "app"])
def test_votes_never_meet_across_prompts_or_apps(other: dict[str, str]) -> None:
    pairs, funnel, reasons = build([_vote(1, UP, "good"), _vote(2, DOWN, "bad", **other)], set(), [])
    assert pairs == []
    assert reasons == {1: LeftOut.NO_PARTNER, 2: LeftOut.NO_PARTNER}
    assert funnel.left_out == {"no_partner": 2}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": None, "token_ids": None}, LeftOut.NOT_STORED),
        ({"text": " \n"}, LeftOut.EMPTY),
        ({"token_ids": ()}, LeftOut.EMPTY),
        ({"finish_reason": "length"}, LeftOut.TRUNCATED),
        ({"completion_id": "learned"}, LeftOut.ALREADY_LEARNED),
    ],
)
def test_an_unusable_vote_is_left_out_with_its_reason_and_its_partner_too(
    fields: dict[str, Any], reason: LeftOut
) -> None:
    pairs, _, reasons = build([_vote(1, UP, "good", **fields), _vote(2, DOWN, "bad")], {("learned", 0)}, [])
    assert pairs == []
    assert reasons == {1: reason, 2: LeftOut.NO_PARTNER}


def test_the_majority_decides_about_the_very_same_answer_also_across_its_samples() -> None:
    votes = [
        _vote(1, UP, "same"),
        _vote(2, DOWN, "same"),
        _vote(3, UP, "same", completion_id="c1"),
        _vote(4, DOWN, "bad"),
    ]
    pairs, _, reasons = build(votes, set(), [])
    assert _matches(pairs) == [("c1", "c4")]
    assert pairs[0].votes == (1, 3, 4)
    assert reasons == {2: LeftOut.CONTRADICTED}


def test_a_tie_contradicts_all_of_its_votes() -> None:
    votes = [_vote(1, UP, "same"), _vote(2, DOWN, "same", completion_id="c1"), _vote(3, DOWN, "bad")]
    pairs, _, reasons = build(votes, set(), [])
    assert pairs == []
    assert reasons == {1: LeftOut.CONTRADICTED, 2: LeftOut.CONTRADICTED, 3: LeftOut.NO_PARTNER}


def test_an_unusable_vote_has_no_say_in_the_majority() -> None:
    votes = [_vote(1, UP, "same"), _vote(2, DOWN, "same", finish_reason="length"), _vote(3, DOWN, "bad")]
    pairs, _, reasons = build(votes, set(), [])
    assert _matches(pairs) == [("c1", "c3")]
    assert reasons == {2: LeftOut.TRUNCATED}


def test_a_choice_counts_once_however_many_users_voted_on_it() -> None:
    votes = [_vote(seq, UP, "good", completion_id="c") for seq in (1, 2, 3)]
    votes += [_vote(4, DOWN, "bad"), _vote(5, DOWN, "worse")]
    pairs, funnel, reasons = build(votes, set(), [])
    assert _matches(pairs) == [("c", "c4")]
    assert pairs[0].votes == (1, 2, 3, 4)
    assert (funnel.votes_in_pairs, reasons) == (4, {5: LeftOut.NO_PARTNER})


def test_choices_are_matched_one_to_one_in_the_order_of_their_first_vote() -> None:
    votes = [
        _vote(1, DOWN, "bad"),
        _vote(2, UP, "good"),
        _vote(3, UP, "better"),
        _vote(4, DOWN, "worse"),
        _vote(5, UP, "best"),
    ]
    pairs, _, reasons = build(votes, set(), [])
    assert sorted(_matches(pairs), key=str) == [("c2", "c1"), ("c3", "c4")]
    assert reasons == {5: LeftOut.NO_PARTNER}


def test_a_choice_keeps_the_place_of_its_first_vote_whatever_comes_later() -> None:
    votes = [
        _vote(1, UP, "same"),
        _vote(2, UP, "other"),
        _vote(3, UP, "same"),
        _vote(4, DOWN, "bad"),
        _vote(5, DOWN, "worse"),
        _vote(6, UP, "same", completion_id="c1"),
    ]
    for order in (votes, votes[::-1]):
        pairs, _, reasons = build(order, set(), [])
        assert sorted(_matches(pairs), key=str) == [("c1", "c4"), ("c2", "c5")]
        assert reasons == {3: LeftOut.NO_PARTNER}


def test_imported_pairs_join_with_their_own_id_and_a_digest_of_their_prompt() -> None:
    imported = [_imported("b"), _imported("a"), _imported("a")]
    pairs, funnel, _ = build([_vote(1, UP, "good"), _vote(2, DOWN, "bad")], set(), imported)
    from_import = [pair for pair in pairs if pair.origin == "import"]
    assert [pair.id for pair in from_import] == ["a", "b"]
    assert len({pair.prompt_digest for pair in pairs}) == 3
    assert all((pair.app, pair.chosen, pair.votes) == (None, None, ()) for pair in from_import)
    assert (funnel.pairs_from_votes, funnel.pairs_imported, funnel.pairs) == (1, 2, 3)


def test_nothing_in_gives_nothing_out() -> None:
    pairs, funnel, reasons = build([], set(), [])
    assert (pairs, funnel.votes, funnel.pairs, funnel.left_out, reasons) == ([], 0, 0, {}, {})


# --- whatever people do -------------------------------------------------------------------------------


@st.composite
def _votes(draw: st.DrawFn) -> list[Vote]:
    """Few apps, prompts, answers and users, so that votes meet. A choice keeps its answer."""
    choice = st.tuples(
        st.sampled_from("ab"), st.sampled_from("pq"), st.integers(0, 1), st.sampled_from(["x", "y", "z", ""])
    )
    cast = st.tuples(choice, st.integers(0, 2), st.sampled_from(Rating), st.sampled_from(["stop"] * 5 + ["length"]))
    votes = []
    for seq, ((app, prompt, number, answer), user, rating, finish) in enumerate(draw(st.lists(cast, max_size=40)), 1):
        fields = {"app": app, "prompt_digest": prompt, "user": str(user), "finish_reason": finish}
        votes.append(_vote(seq, rating, answer, completion_id=f"{app}{prompt}{number}{answer}{finish}", **fields))
    return votes


_LEARNED = st.sets(st.tuples(st.sampled_from(["ap0xstop", "ap1ystop", "bq0xstop"]), st.just(0)))


@given(_votes(), _LEARNED, st.lists(st.sampled_from("mno").map(_imported)), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    votes: list[Vote], learned: set[tuple[str, int]], imported: list[ImportedPair], chance: random.Random
) -> None:
    expected = build(votes, learned, imported)
    chance.shuffle(votes)
    chance.shuffle(imported)
    assert build(votes, learned, imported) == expected


@given(_votes(), _LEARNED)
def test_every_vote_is_either_in_one_pair_or_has_a_reason(votes: list[Vote], learned: set[tuple[str, int]]) -> None:
    pairs, funnel, reasons = build(votes, learned, [])
    paired = [seq for pair in pairs for seq in pair.votes]
    assert sorted(paired + list(reasons)) == [vote.seq for vote in votes]
    assert funnel.votes == len(votes) == funnel.votes_in_pairs + sum(funnel.left_out.values())
    assert funnel.left_out == Counter(reason.value for reason in reasons.values())


@given(_votes(), _LEARNED)
def test_a_pair_has_one_app_one_prompt_two_answers_and_choices_of_its_own(
    votes: list[Vote], learned: set[tuple[str, int]]
) -> None:
    pairs, _, _ = build(votes, learned, [])
    by_seq = {vote.seq: vote for vote in votes}
    for pair in pairs:
        cast = [by_seq[seq] for seq in pair.votes]
        assert {(vote.app, vote.prompt_digest) for vote in cast} == {(pair.app, pair.prompt_digest)}
        answers = {rating: {vote.token_ids for vote in cast if vote.rating is rating} for rating in Rating}
        assert len(answers[UP]) == len(answers[DOWN]) == 1
        assert answers[UP] != answers[DOWN]
    choices = [key for pair in pairs for key in (pair.chosen, pair.rejected)]
    assert len(set(choices)) == len(choices)
    assert not learned & set(choices)
    assert [pair.id for pair in pairs] == sorted({pair.id for pair in pairs})


# --- hold-out -----------------------------------------------------------------------------------------


def _pairs(*prompts: str) -> list[Pair]:
    return [
        Pair(
            id=f"{prompt}-{index}",
            origin="import",
            prompt_digest=hashlib.sha256(prompt.encode()).hexdigest(),
            app=None,
            chosen=None,
            rejected=None,
        )
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(("prompts", "held_out"), [(0, 0), (1, 0), (2, 1), (3, 1), (20, 3), (100, 15)])
def test_the_share_is_of_prompts_and_both_sides_have_some(prompts: int, held_out: int) -> None:
    assert len(hold_out(_pairs(*(str(number) for number in range(prompts))))) == held_out


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_share_empties_a_side(share: float) -> None:
    assert 0 < len(hold_out(_pairs("a", "b", "c"), share)) < 3


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.randoms(use_true_random=False))
def test_a_prompt_is_on_one_side_with_all_of_its_pairs_whatever_the_order(
    prompts: list[str], chance: random.Random
) -> None:
    pairs = _pairs(*prompts)
    held_out = hold_out(pairs)
    sides = {pair.prompt_digest: pair.id in held_out for pair in pairs}
    assert held_out == {pair.id for pair in pairs if sides[pair.prompt_digest]}
    chance.shuffle(pairs)
    assert hold_out(pairs) == held_out


def test_a_prompt_that_is_held_out_stays_so_while_others_join() -> None:
    few = [str(number) for number in range(20)]
    more = [str(number) for number in range(1000, 1020)]
    before = {pair.prompt_digest for pair in _pairs(*few) if pair.id in hold_out(_pairs(*few))}
    both = _pairs(*few, *more)
    after = {pair.prompt_digest for pair in both if pair.id in hold_out(both)}
    assert before & after
