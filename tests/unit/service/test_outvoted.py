"""Thumbs on an answer that a round has learned already: who lost there, who won, and who votes after it."""

from __future__ import annotations

from datetime import timedelta

from service.curation.ballots import Learned
from service.pairs import LeftOut
from tests.prompt_votes import BEGIN, DOWN, UP, match_of, reasons, sides, thumb


def test_who_was_outvoted_where_a_round_learned_has_lost_and_who_votes_after_it_is_heard() -> None:
    casts = [thumb(1, UP, "same"), thumb(2, UP, "same"), thumb(3, DOWN, "same"), thumb(4, DOWN, "bad")]
    later = [thumb(8, DOWN, "same"), thumb(9, DOWN, "same"), thumb(10, UP, "good")]
    asked_at = BEGIN + timedelta(seconds=5)
    matched = match_of(
        *casts, *later, learned_choices={("c1", 0): Learned(UP, asked_at), ("c4", 0): Learned(DOWN, asked_at)}
    )
    assert sides(matched) == [("c10", "c8"), (None, "c9")]
    contradicted = dict.fromkeys((2, 3), LeftOut.CONTRADICTED)  # the third by what was learned, the second by new votes
    assert reasons(matched) == contradicted | dict.fromkeys((1, 4), LeftOut.ALREADY_LEARNED)


def test_who_was_of_the_majority_has_not_lost_though_somebody_else_disliked_what_was_learned() -> None:
    first, second = ("c1", 0), ("c2", 0)
    casts = [thumb(1, UP, "same", key=first), thumb(2, UP, "same", key=second), thumb(3, DOWN, "same", key=first)]
    asked_at = BEGIN + timedelta(seconds=5)
    matched = match_of(*casts, learned_choices={first: Learned(UP, asked_at)})
    assert sides(matched) == [("c2", None)]
    assert reasons(matched) == dict.fromkeys((1, 3), LeftOut.ALREADY_LEARNED)
