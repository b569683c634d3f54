from __future__ import annotations

import hashlib
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.curation.ballots import Learned
from service.curation.settings import PreferenceSettings
from service.pairs import Pair, Source
from service.preferences import (
    PromptVotes,
    hold_out,
    match,
)
from service.votes import ChoiceKey, Kind, Rating
from tests.prompt_votes import (
    BEGIN,
    RATED,
    answered,
    cast,
)

# --- whatever people do -------------------------------------------------------------------------------

LATER = BEGIN + timedelta(days=1)  # than all votes
LEARNED = st.builds(Learned, st.sampled_from(Rating), st.sampled_from([BEGIN, LATER]))
KEYS = [(completion, index) for completion in "abcd" for index in (0, 1)]
ANSWERS = dict(zip(KEYS, ["x", "x", "y", "y ", "z", "", "w", "v"], strict=True))


@st.composite
def _prompts(draw: st.DrawFn) -> PromptVotes:
    """Few answers and users, so that votes meet; of a user's votes of a kind on a target the last counts."""
    user = st.sampled_from(["ada", "bob", "cy", None])
    faults = st.sampled_from([{}] * 12 + [{"finish_reason": "length"}, {"token_ids": None}, {"finish_reason": "abort"}])
    asked = st.sampled_from(["ada", "bob", None])
    answers = {}
    for completion in "abcd":
        asker = draw(asked)
        for key in KEYS:
            if key[0] == completion and draw(st.integers(0, 15)):
                answers[key] = answered(key, ANSWERS[key], **({"asked_by": asker} | draw(faults)))
    votes = {}
    for seq in range(1, draw(st.integers(0, 25)) + 1):
        kind, key, who = draw(st.sampled_from([Kind.RATING, *Kind])), draw(st.sampled_from(KEYS)), draw(user)
        fields: dict[str, Any] = {"user": who, "held": not draw(st.integers(0, 15)), "tags": ("t",) * (seq % 2)}
        if kind is Kind.RATING:
            fields["rating"] = draw(st.sampled_from(Rating))
        elif kind is Kind.CORRECTION:
            fields["correction"] = draw(st.sampled_from(["x", "new", " w"]))
        else:
            fields["rival"] = draw(st.sampled_from([rival for rival in KEYS if rival != key]))
            fields["tie"] = not draw(st.integers(0, 5))
        votes[who, kind, frozenset({key, fields.get("rival", key)})] = cast(seq, kind, key, **fields)
    return PromptVotes(
        app="shop",
        prompt_digest="p",
        prompt_text="why?",
        single_turn=draw(st.booleans()),
        votes=tuple(votes.values()),
        answers=answers,
        learned_choices=draw(st.dictionaries(st.sampled_from(KEYS), LEARNED, max_size=2)),
        dropped=frozenset(vote.seq for vote in votes.values() if vote.held and vote.seq % 2),
    )


SETTINGS = st.builds(PreferenceSettings, across_users=st.sampled_from(["single_turn", "never", "always"]))


@given(_prompts(), SETTINGS)
def test_every_vote_has_one_fate_and_every_pair_the_votes_that_name_it(
    prompt: PromptVotes, settings: PreferenceSettings
) -> None:
    matched = match(prompt, settings)
    assert sorted(matched.fates) == sorted(vote.seq for vote in prompt.votes)
    named: dict[str, list[int]] = {}
    for seq, fate in sorted(matched.fates.items()):
        if fate.pair_id is not None:
            named.setdefault(fate.pair_id, []).append(seq)
    assert named == {pair.id: list(pair.votes) for pair in matched.pairs}
    assert all(
        pair.votes and pair.voter in pair.voters and set(pair.charged_to) <= set(pair.voters) for pair in matched.pairs
    )


@given(_prompts(), SETTINGS, st.randoms(use_true_random=False))
def test_the_order_of_the_votes_does_not_matter(
    prompt: PromptVotes, settings: PreferenceSettings, chance: random.Random
) -> None:
    expected = match(prompt, settings)
    votes, answers = list(prompt.votes), list(prompt.answers.items())
    chance.shuffle(votes)
    chance.shuffle(answers)
    fields = {name: getattr(prompt, name) for name in prompt.__dataclass_fields__}
    assert match(PromptVotes(**(fields | {"votes": tuple(votes), "answers": dict(answers)})), settings) == expected
    assert [pair.id for pair in expected.pairs] == sorted({pair.id for pair in expected.pairs})


@given(_prompts(), SETTINGS)
def test_a_pair_has_two_answers_that_differ_and_no_answer_is_in_two_pairs_made_of_thumbs(
    prompt: PromptVotes, settings: PreferenceSettings
) -> None:
    pairs = match(prompt, settings).pairs
    by_seq = {vote.seq: vote for vote in prompt.votes}
    for pair in pairs:
        sides = [prompt.answers[key] for key in (pair.chosen, pair.rejected) if key is not None]
        assert all(answer.fault is None for answer in sides)
        assert len({answer.text and answer.text.strip() for answer in sides}) == len(sides)
        if pair.correction is not None:
            assert (by_seq[pair.correction].correction or "").strip() != (sides[0].text or "").strip()
    used = [key for pair in pairs if pair.source in RATED for key in (pair.chosen, pair.rejected) if key is not None]
    assert len(set(used)) == len(used)
    assert not prompt.learned_choices.keys() & set(used)


@given(_prompts(), SETTINGS, st.sets(st.integers(0, 30)))
def test_what_was_learned_is_not_learned_again(
    prompt: PromptVotes, settings: PreferenceSettings, picked: set[int]
) -> None:
    """After a round took some pairs, none of them is found again, nor an answer of those made of thumbs."""
    pairs = match(prompt, settings).pairs
    taken = [pair for number, pair in enumerate(pairs) if number in picked]
    choices = {key for pair in taken if pair.source in RATED for key in (pair.chosen, pair.rejected) if key is not None}
    fields = {name: getattr(prompt, name) for name in prompt.__dataclass_fields__}
    fields |= {
        "learned_choices": dict(prompt.learned_choices) | dict.fromkeys(choices, Learned(Rating.UP, LATER)),
        "learned_pairs": frozenset(pair.id for pair in taken),
    }
    again = match(PromptVotes(**fields), settings)
    assert not {pair.id for pair in taken} & {pair.id for pair in again.pairs}
    for pair in again.pairs:
        if pair.source in RATED:
            assert not choices & {pair.chosen, pair.rejected}


@given(_prompts(), SETTINGS)
def test_a_person_counts_once_for_each_answer(prompt: PromptVotes, settings: PreferenceSettings) -> None:
    """Votes of one named user on one answer that are in pairs are all of one kind."""
    matched = match(prompt, settings)
    kinds: dict[tuple[str, ChoiceKey], set[Kind]] = {}
    for vote in prompt.votes:
        if vote.user is not None and matched.fates[vote.seq].pair_id is not None:
            for key in (vote.choice, vote.rival):
                if key is not None:
                    kinds.setdefault((vote.user, key), set()).add(vote.kind)
    assert all(len(found) == 1 for found in kinds.values())


# --- hold-out -----------------------------------------------------------------------------------------


def _pairs(*prompts: str) -> list[Pair]:
    return [
        Pair(
            id=f"{prompt}-{index}",
            source=Source.IMPORT,
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
