from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.votes import ChoiceKey, FeedbackBody, Kind, Rating, target


def _body(**said: Any) -> FeedbackBody:
    return FeedbackBody.model_validate({"completion_id": "c"} | said)


@pytest.mark.parametrize(
    "spelling", ["up", "UP", " thumbs_up ", "thumbsup", "positive", "good", "like", "1", "+1", 1, 1.0, True, "true"]
)
def test_what_clients_call_a_thumbs_up(spelling: Any) -> None:
    assert _body(rating=spelling).rating is Rating.UP


@pytest.mark.parametrize(
    "spelling", ["down", "Thumbs_Down", "negative", "bad", "dislike", "-1", -1, -1.0, False, "false"]
)
def test_what_clients_call_a_thumbs_down(spelling: Any) -> None:
    assert _body(rating=spelling).rating is Rating.DOWN


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "upp",
        0,
        2,
        0.5,
        math.nan,
        math.inf,
        1e308,
        pytest.param(10**5000, id="thousands of digits"),
        ["up"],
        {"up": 1},
        "\ud800",
    ],
)
def test_what_is_no_rating_is_refused_with_those_that_are(nonsense: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        _body(rating=nonsense)
    assert refused.value.errors()[0]["loc"] == ("rating",)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"rating": "up"}, Kind.RATING),
        ({"preferred_over": {"completion_id": "d"}}, Kind.COMPARISON),
        ({"preferred_over": {"choice_index": 1, "tie": True}}, Kind.COMPARISON),
        ({"correction": "better"}, Kind.CORRECTION),
    ],
    ids=str,
)
def test_what_is_said_makes_the_kind(said: dict[str, Any], kind: Kind) -> None:
    assert _body(**said).kind is kind


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"rating": None},
        {"rating": "up", "correction": "x"},
        {"correction": "x", "preferred_over": {"choice_index": 1}},
    ],
    ids=str,
)
def test_a_vote_says_exactly_one_thing(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of rating, preferred_over and correction"):
        _body(**said)


@pytest.mark.parametrize("rival", [{}, {"completion_id": "c"}, {"choice_index": 0}], ids=str)
def test_an_answer_is_not_preferred_to_itself(rival: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="names the very same choice"):
        _body(preferred_over=rival)


def test_a_rival_without_a_completion_is_of_the_same_one() -> None:
    assert _body(preferred_over={"choice_index": 2}).rival == ("c", 2)
    assert _body(choice_index=2, preferred_over={"completion_id": "d"}).rival == ("d", 0)


def test_a_comparison_is_about_the_same_two_choices_whichever_it_prefers() -> None:
    one = _body(choice_index=0, preferred_over={"choice_index": 1})
    other = _body(choice_index=1, preferred_over={"choice_index": 0, "tie": True})
    assert target(one) == target(other) == "c/0 c/1"
    assert target(_body(rating="up")) == target(_body(correction="x")) == "c/0"


Choices = list[ChoiceKey]
choices = st.tuples(st.sampled_from(["a", "b", "chatcmpl-1", "chatcmpl-11"]), st.integers(0, 12))
pairs = st.lists(choices, min_size=2, max_size=2, unique=True)


@given(pairs, pairs)
def test_only_the_same_two_choices_have_the_same_target(pair: Choices, another: Choices) -> None:

    def comparison(side: tuple[str, int], rival: tuple[str, int]) -> FeedbackBody:
        other = {"completion_id": rival[0], "choice_index": rival[1]}
        return FeedbackBody.model_validate({"completion_id": side[0], "choice_index": side[1], "preferred_over": other})

    assert (target(comparison(*pair)) == target(comparison(*another))) is (set(pair) == set(another))
