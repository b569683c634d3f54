from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from service.curation.ballots import Learned
from service.curation.guards import Context, Selection, select
from service.curation.settings import PreferenceSettings
from service.pairs import ImportedPair, LeftOut, Pair, Source
from service.preferences import (
    Matched,
    from_import,
    funnel,
    unmatched,
    voter,
)
from service.votes import ChoiceKey
from tests.prompt_votes import (
    BEGIN,
    DOWN,
    UP,
    comparison,
    correction,
    match_of,
    reasons,
    sides,
    thumb,
)


def _imported(name: str) -> ImportedPair:
    return ImportedPair(id=name, messages=({"role": "user", "content": name},), chosen="good", rejected="bad")


# --- thumbs -------------------------------------------------------------------------------------------


def test_an_up_and_a_down_vote_on_two_answers_to_one_prompt_make_a_pair() -> None:
    matched = match_of(thumb(1, DOWN, "bad!", tags=("rude",)), thumb(2, UP, "good", adapter="policy", tags=("kind",)))
    (pair,) = matched.pairs
    assert (pair.chosen, pair.rejected, pair.votes) == (("c2", 0), ("c1", 0), (1, 2))
    assert (pair.source, pair.app, pair.prompt_digest) == (Source.SAME_PROMPT, "shop", "p")
    assert (pair.adapters, pair.tags, pair.voted_at) == (
        ("base", "policy"),
        ("kind", "rude"),
        BEGIN + timedelta(seconds=2),
    )
    assert (pair.chosen_length, pair.rejected_length, pair.weight) == (4, 4, 1.0)
    assert {seq: fate.pair_id for seq, fate in matched.fates.items()} == {1: pair.id, 2: pair.id}


def test_choices_of_one_completion_can_be_a_pair() -> None:
    (pair,) = match_of(thumb(1, UP, "good", key=("c", 0)), thumb(2, DOWN, "bad", key=("c", 1))).pairs
    assert (pair.chosen, pair.rejected) == (("c", 0), ("c", 1))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": None, "token_ids": None}, LeftOut.NOT_STORED),
        ({"token_ids": None, "redacted": True}, LeftOut.REDACTED),
        ({"text": " \n"}, LeftOut.EMPTY),
        ({"token_ids": ()}, LeftOut.EMPTY),
        ({"finish_reason": "length"}, LeftOut.TRUNCATED),
        ({"finish_reason": "abort"}, LeftOut.FAILED),
        ({"finished": False}, LeftOut.UNFINISHED),
        ({"finished": False, "finish_reason": "cancelled"}, LeftOut.UNFINISHED),
        ({"finish_reason": "error", "text": "", "token_ids": ()}, LeftOut.FAILED),
        ({"key": ("learned", 0)}, LeftOut.ALREADY_LEARNED),
    ],
)
def test_an_unusable_vote_is_left_out_with_its_reason_and_its_partner_is_a_single_thumb(
    fields: dict[str, Any], reason: LeftOut
) -> None:
    casts = [thumb(1, UP, "good", **fields), thumb(2, DOWN, "bad")]
    matched = match_of(*casts, learned_choices={("learned", 0): Learned(UP, BEGIN)})
    assert sides(matched) == [(None, "c2")]
    assert [pair.source for pair in matched.pairs] == [Source.THUMB]
    assert reasons(matched) == {1: reason}


def test_the_majority_decides_about_the_very_same_answer_also_across_its_samples() -> None:
    casts = [thumb(1, UP, "same"), thumb(2, DOWN, "same"), thumb(3, UP, "same", key=("c1", 0)), thumb(4, DOWN, "bad")]
    matched = match_of(*casts)
    assert sides(matched) == [("c1", "c4")]
    assert matched.pairs[0].votes == (1, 3, 4)
    assert reasons(matched) == {2: LeftOut.CONTRADICTED}


def test_a_person_has_one_voice_in_the_majority_however_often_they_were_given_that_answer() -> None:
    casts = [thumb(seq, UP, "same", user="keen") for seq in range(1, 9)]
    casts += [thumb(9, DOWN, "same"), thumb(10, DOWN, "same"), thumb(11, UP, "good")]
    matched = match_of(*casts)
    assert set(reasons(matched).items()) == {(seq, LeftOut.CONTRADICTED) for seq in range(1, 9)}
    assert ("c11", "c9") in sides(matched)


def test_a_draw_contradicts_all_of_its_votes() -> None:
    matched = match_of(thumb(1, UP, "same"), thumb(2, DOWN, "same", key=("c1", 0)), thumb(3, DOWN, "bad"))
    assert sides(matched) == [(None, "c3")]
    assert reasons(matched) == {1: LeftOut.CONTRADICTED, 2: LeftOut.CONTRADICTED}


def test_an_unusable_vote_has_no_say_in_the_majority() -> None:
    matched = match_of(thumb(1, UP, "same"), thumb(2, DOWN, "same", finish_reason="length"), thumb(3, DOWN, "bad"))
    assert sides(matched) == [("c1", "c3")]
    assert reasons(matched) == {2: LeftOut.TRUNCATED}


@pytest.mark.parametrize("other", [{"token_ids": (1, 2)}, {"text": "cut by a stop string"}], ids=["text", "tokens"])
def test_answers_with_the_same_text_or_the_same_tokens_are_one_answer(other: dict[str, Any]) -> None:
    matched = match_of(thumb(1, UP, "same"), thumb(2, DOWN, "same", **other))
    assert matched.pairs == ()
    assert reasons(matched) == {1: LeftOut.CONTRADICTED, 2: LeftOut.CONTRADICTED}


def test_a_choice_counts_once_however_many_users_voted_on_it() -> None:
    casts = [thumb(seq, UP, "good", key=("c", 0)) for seq in (1, 2, 3)]
    matched = match_of(*casts, thumb(4, DOWN, "bad"), thumb(5, DOWN, "worse"))
    assert sides(matched) == [("c", "c4"), (None, "c5")]
    (pair,) = [pair for pair in matched.pairs if not pair.is_thumb]
    assert (pair.votes, len(pair.voters)) == ((1, 2, 3, 4), 4)


def test_choices_are_matched_one_to_one_in_the_order_of_their_first_vote() -> None:
    casts = [
        *(thumb(1, DOWN, "bad"), thumb(2, UP, "good"), thumb(3, UP, "better")),
        *(thumb(4, DOWN, "worse"), thumb(5, UP, "best")),
    ]
    assert sides(match_of(*casts)) == [("c2", "c1"), ("c3", "c4"), ("c5", None)]


def test_what_one_person_saw_is_matched_before_what_several_did() -> None:
    casts = [
        *(thumb(1, UP, "liked by a"), thumb(2, DOWN, "disliked by b", user="b"), thumb(3, UP, "liked by b", user="b")),
        thumb(4, DOWN, "disliked by d"),
    ]
    matched = match_of(*casts)
    assert {(pair.source, pair.chosen) for pair in matched.pairs} == {
        (Source.SIBLINGS, ("c3", 0)),
        (Source.SAME_PROMPT, ("c1", 0)),
    }


@pytest.mark.parametrize(
    ("across", "single_turn", "meet"),
    [
        ("single_turn", True, True),
        ("single_turn", False, False),
        ("never", True, False),
        ("always", False, True),
    ],
)
def test_users_meet_where_the_settings_allow_it(across: Any, single_turn: bool, meet: bool) -> None:
    """Where they do not, each vote is a single thumb, which compares nobody with anybody."""
    settings = PreferenceSettings(across_users=across)
    matched = match_of(thumb(1, UP, "good"), thumb(2, DOWN, "bad"), settings=settings, single_turn=single_turn)
    assert sides(matched) == ([("c1", "c2")] if meet else [("c1", None), (None, "c2")])
    assert set(unmatched(matched.pairs).values()) == (set() if meet else {LeftOut.PERSONAL})


def test_a_thumb_whose_opposite_nobody_gave_has_no_partner() -> None:
    thumbs = [*match_of(thumb(1, UP, "good"), single_turn=False).pairs, from_import(_imported("i"))]
    assert list(unmatched(thumbs).values()) == [LeftOut.NO_PARTNER]


def test_in_a_conversation_one_users_own_answers_are_compared() -> None:
    matched = match_of(thumb(1, UP, "good", user="a"), thumb(2, DOWN, "bad", user="a"), single_turn=False)
    assert [pair.source for pair in matched.pairs] == [Source.SIBLINGS]


def test_of_unnamed_voters_only_those_of_one_completion_are_taken_for_one_person() -> None:
    casts = [thumb(1, UP, "good", key=("c", 0), user=None), thumb(2, DOWN, "bad", key=("c", 1), user=None)]
    assert [pair.source for pair in match_of(*casts, single_turn=False).pairs] == [Source.SIBLINGS]
    casts = [thumb(1, UP, "good", user=None), thumb(2, DOWN, "bad", user=None)]
    assert [pair.is_thumb for pair in match_of(*casts, single_turn=False).pairs] == [True, True]


def test_a_vote_without_a_user_is_the_askers() -> None:
    casts = [thumb(1, UP, "good", user=None, asked_by="ada"), thumb(2, DOWN, "bad", user="ada")]
    (pair,) = match_of(*casts, single_turn=False).pairs
    assert (pair.source, pair.voters) == (Source.SIBLINGS, (voter("shop", "ada"),))


def test_a_vote_with_and_one_without_the_users_name_count_once() -> None:
    casts = [
        thumb(1, UP, "good", key=("c", 0), user="ada"),
        thumb(2, DOWN, "good", key=("c", 0), user=None, asked_by="ada"),
    ]
    matched = match_of(*casts)
    assert reasons(matched) == {1: LeftOut.COUNTED_ONCE}
    assert sides(matched) == [(None, "c")]


def test_a_held_vote_waits_and_a_dropped_one_is_gone() -> None:
    casts = [thumb(1, UP, "good", held=True), thumb(2, DOWN, "bad", held=True), thumb(3, UP, "fine")]
    matched = match_of(*casts, dropped=frozenset({2}))
    assert reasons(matched) == {1: LeftOut.QUARANTINED, 2: LeftOut.DROPPED}
    assert sides(matched) == [("c3", None)]


# --- comparisons --------------------------------------------------------------------------------------

A, B, C = ("a", 0), ("b", 0), ("c", 0)
TEXTS = {A: "first", B: "second", C: "third"}


def test_a_comparison_is_a_pair_and_may_speak_of_an_answer_again() -> None:
    matched = match_of(comparison(1, A, B, TEXTS, user="u"), comparison(2, A, C, TEXTS, user="u"))
    assert sides(matched) == [("a", "b"), ("a", "c")]
    assert {pair.source for pair in matched.pairs} == {Source.SIDE_BY_SIDE}


def test_the_majority_decides_which_of_two_answers_is_better() -> None:
    matched = match_of(comparison(1, A, B, TEXTS), comparison(2, B, A, TEXTS), comparison(3, B, A, TEXTS))
    (pair,) = matched.pairs
    assert (pair.chosen, pair.votes) == (B, (2, 3))
    assert reasons(matched) == {1: LeftOut.CONTRADICTED}
    draw = match_of(comparison(1, A, B, TEXTS), comparison(2, B, A, TEXTS))
    assert (draw.pairs, set(reasons(draw).values())) == ((), {LeftOut.CONTRADICTED})


def test_neither_better_is_no_pair_and_no_voice_against_those_who_chose() -> None:
    matched = match_of(comparison(1, A, B, TEXTS, tie=True), comparison(2, A, B, TEXTS))
    assert sides(matched) == [("a", "b")]
    assert reasons(matched) == {1: LeftOut.TIE}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({A: "same", B: "same "}, LeftOut.UNCHANGED),
        ({A: "first"}, LeftOut.NOT_STORED),
        ({B: "second"}, LeftOut.NOT_STORED),
        ({A: "first", B: " "}, LeftOut.EMPTY),
    ],
    ids=["same answer", "erased rival", "erased", "empty rival"],
)
def test_a_comparison_needs_two_answers_that_differ(texts: dict[ChoiceKey, str], reason: LeftOut) -> None:
    matched = match_of(comparison(1, A, B, texts))
    assert (matched.pairs, reasons(matched)) == ((), {1: reason})


def test_thumbs_that_say_the_same_as_a_comparison_join_its_pair() -> None:
    casts = [comparison(1, A, B, TEXTS, user="u"), thumb(2, UP, "first", key=A), thumb(3, DOWN, "second", key=B)]
    (pair,) = match_of(*casts).pairs
    assert (pair.source, pair.votes, len(pair.voters), pair.charged_to) == (Source.SIDE_BY_SIDE, (1, 2, 3), 3, ())


# --- corrections --------------------------------------------------------------------------------------


def test_a_correction_is_preferred_to_what_was_served() -> None:
    (pair,) = match_of(correction(7, "the right text", "wrong", key=A)).pairs
    assert (pair.source, pair.correction, pair.chosen, pair.rejected) == (Source.CORRECTION, 7, None, A)
    assert (pair.chosen_length, pair.rejected_length) == (len("the right text"), len("wrong"))


def test_each_users_correction_of_an_answer_is_a_pair_of_its_own() -> None:
    matched = match_of(correction(1, "x", "wrong", key=A), correction(2, "y", "wrong", key=A))
    assert [pair.rejected for pair in matched.pairs] == [A, A]


def test_a_correction_that_changes_nothing_is_left_out_and_outranks_nothing() -> None:
    matched = match_of(correction(1, " wrong\n", "wrong", key=A, user="u"), thumb(2, DOWN, "wrong", key=A, user="u"))
    assert reasons(matched) == {1: LeftOut.UNCHANGED}
    assert sides(matched) == [(None, "a")]


def test_of_one_persons_votes_on_an_answer_the_most_deliberate_counts() -> None:
    casts = [
        correction(1, "right", "second", key=B, user="u"),
        comparison(2, A, B, TEXTS, user="u"),
        thumb(3, DOWN, "second", key=B, user="u"),
        thumb(4, UP, "first", key=A, user="u"),
    ]
    matched = match_of(*casts)
    assert [(pair.source, pair.votes) for pair in sorted(matched.pairs, key=lambda pair: pair.votes)] == [
        (Source.CORRECTION, (1,)),
        (Source.THUMB, (4,)),
    ]
    assert reasons(matched) == {2: LeftOut.COUNTED_ONCE, 3: LeftOut.COUNTED_ONCE}
    without_correction = match_of(*casts[1:])
    assert [pair.votes for pair in without_correction.pairs] == [(2,)]
    assert reasons(without_correction) == {3: LeftOut.COUNTED_ONCE, 4: LeftOut.COUNTED_ONCE}


def test_to_like_an_answer_and_to_rewrite_it_is_a_contradiction_that_the_rewriting_wins() -> None:
    matched = match_of(correction(1, "right", "wrong", key=A, user="u"), thumb(2, UP, "wrong", key=A, user="u"))
    assert reasons(matched) == {2: LeftOut.CONTRADICTED}
    assert [pair.source for pair in matched.pairs] == [Source.CORRECTION]


def test_another_persons_thumb_on_a_corrected_answer_counts() -> None:
    matched = match_of(correction(1, "right", "wrong", key=A, user="u"), thumb(2, UP, "wrong", key=A, user="v"))
    assert sorted(pair.source.value for pair in matched.pairs) == ["correction", "thumb"]


def test_comparisons_and_corrections_are_learned_pair_by_pair() -> None:
    casts = [comparison(1, A, B, TEXTS), correction(2, "right", "second", key=B), comparison(3, A, C, TEXTS)]
    first = match_of(*casts)
    learned = frozenset(pair.id for pair in first.pairs if pair.votes != (3,))
    again = match_of(*casts, learned_pairs=learned)
    assert [pair.votes for pair in again.pairs] == [(3,)]
    assert reasons(again) == {1: LeftOut.ALREADY_LEARNED, 2: LeftOut.ALREADY_LEARNED}


def test_what_was_learned_from_a_persons_comparison_does_not_free_their_thumbs() -> None:
    casts = [comparison(1, A, B, TEXTS, user="u"), thumb(2, UP, "first", key=A, user="u")]
    learned = frozenset(pair.id for pair in match_of(*casts).pairs)
    assert reasons(match_of(*casts, learned_pairs=learned)) == {1: LeftOut.ALREADY_LEARNED, 2: LeftOut.COUNTED_ONCE}


# --- who is behind a pair -----------------------------------------------------------------------------


def test_a_pair_is_charged_to_whom_it_would_not_be_without() -> None:
    alone = match_of(thumb(1, UP, "good", user="a"), thumb(2, DOWN, "bad", user="b")).pairs[0]
    assert set(alone.charged_to) == {voter("shop", "a"), voter("shop", "b")}
    liked_by_two = [thumb(1, UP, "good", key=A, user="a"), thumb(2, UP, "good", key=A, user="c")]
    assert match_of(*liked_by_two, thumb(3, DOWN, "bad", user="b")).pairs[0].charged_to == (voter("shop", "b"),)
    compared_by_two = [comparison(1, A, B, TEXTS, user="a"), comparison(2, A, B, TEXTS, user="b")]
    assert match_of(*compared_by_two).pairs[0].charged_to == ()
    assert match_of(*compared_by_two[:1]).pairs[0].charged_to == (voter("shop", "a"),)


def test_who_voted_is_a_digest_that_no_two_apps_share() -> None:
    (pair,) = match_of(thumb(2, UP, "good", user="ada"), thumb(1, DOWN, "bad", user="bob")).pairs
    assert pair.voter == voter("shop", "bob"), "who voted first"
    assert "bob" not in str(pair.voter)
    assert voter("other", "bob") != pair.voter
    assert voter("shop", None) not in {voter("shop", ""), voter("other", None)}


def test_what_the_prompt_holds_already_is_measured() -> None:
    said = "the moon is made of cheese, as everybody knows"
    (pair,) = match_of(thumb(1, UP, said), prompt_text=f"Please repeat: {said}").pairs
    assert pair.copied == 1.0
    assert match_of(thumb(1, UP, said)).pairs[0].copied == 0.0


# --- imports, and the funnel --------------------------------------------------------------------------


def test_an_imported_pair_keeps_its_id_and_has_a_digest_of_its_prompt() -> None:
    pair, other = from_import(_imported("a")), from_import(_imported("b"))
    assert (pair.id, pair.source, pair.app, pair.chosen, pair.votes) == ("a", Source.IMPORT, None, None, ())
    assert pair.prompt_digest != other.prompt_digest
    assert from_import(_imported("a").model_copy(update={"rejected": None})).is_thumb


def _guarded(pairs: list[Pair], **settings: Any) -> Selection:
    return select(pairs, PreferenceSettings(**settings), Context(now=BEGIN))


@pytest.mark.parametrize("thumbs", [False, True])
def test_the_funnel_says_what_became_of_every_vote(thumbs: bool) -> None:
    casts = [
        *(thumb(1, UP, "good"), thumb(2, DOWN, "bad"), thumb(3, UP, "fine")),
        *(
            comparison(4, A, B, TEXTS, user="u"),
            comparison(5, A, C, TEXTS, user="u"),
            comparison(6, B, C, TEXTS, tie=True),
        ),
    ]
    matched = match_of(*casts)
    pairs = [*matched.pairs, from_import(_imported("i"))]
    told = funnel(
        Counter(reasons(matched).values()), pairs, _guarded(pairs, max_pairs_per_user=1), thumbs=thumbs, replayed=4
    )
    assert (told.votes, told.votes_in_pairs, told.votes_in_thumbs) == (6, 3, int(thumbs))
    assert told.left_out == {"tie": 1, "user_cap": 1} | ({} if thumbs else {"no_partner": 1})
    assert (told.pairs_from_votes, told.pairs_imported, told.thumbs, told.pairs_replayed) == (2, 1, int(thumbs), 4)
    assert told.sources == {"side_by_side": 1, "same_prompt": 1, "import": 1}


def test_nothing_in_gives_nothing_out() -> None:
    assert match_of() == Matched((), {})
    told = funnel({}, [], _guarded([]), thumbs=True)
    assert (told.votes, told.pairs, told.left_out) == (0, 0, {})
