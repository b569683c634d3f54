"""Who answers whom: shares that hold, and the same adapter for the same people."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import BASE, Route
from serving.routing import draw, sticky_key

STABLE, CANDIDATE, NEXT, OLD = (f"policy-000{n}-aaaaaaaa" for n in range(1, 5))
KEYS = [sticky_key("shop", f"user {number}", None, "") for number in range(20_000)]
TOLERANCE = 0.015  # four standard deviations of a share of so many keys


def _split(candidate: float = 0.0, baseline: float = 0.0, *, name: str = CANDIDATE) -> Route:
    return Route(stable=STABLE, candidate=name, candidate_share=candidate, baseline=OLD, baseline_share=baseline)


def _drawn(route: Route, adapter: str) -> set[str]:
    return {key for key in KEYS if draw(route, key) == adapter}


def test_without_shares_the_stable_adapter_answers() -> None:
    assert _drawn(Route(stable=STABLE, previous=OLD), STABLE) == set(KEYS)
    assert _drawn(_split(0.0, 0.0), STABLE) == set(KEYS)


@pytest.mark.parametrize(("candidate", "baseline"), [(0.05, 0.0), (0.25, 0.01), (0.5, 0.5), (0.0, 0.1), (0.9, 0.05)])
def test_each_place_gets_its_share(candidate: float, baseline: float) -> None:
    route = _split(candidate, baseline)
    shares = {adapter: len(_drawn(route, adapter)) / len(KEYS) for adapter in (CANDIDATE, OLD, STABLE)}
    assert shares[CANDIDATE] == pytest.approx(candidate, abs=TOLERANCE)
    assert shares[OLD] == pytest.approx(baseline, abs=TOLERANCE)
    assert shares[STABLE] == pytest.approx(1 - candidate - baseline, abs=TOLERANCE)


@pytest.mark.parametrize(("route", "adapter"), [(_split(1.0), CANDIDATE), (_split(0.0, 1.0), OLD)])
def test_the_whole_share_is_everybody(route: Route, adapter: str) -> None:
    assert _drawn(route, adapter) == set(KEYS)


def test_a_candidate_that_grows_keeps_those_it_had() -> None:
    grown = [_drawn(_split(share, 0.1), CANDIDATE) for share in (0.05, 0.25, 0.5, 0.9)]
    assert all(before < after for before, after in itertools.pairwise(grown))


def test_the_next_candidate_draws_others() -> None:
    """Else the same users would be tried on in every round."""
    before, after = (
        _drawn(_split(0.2, name=name), CANDIDATE if name == CANDIDATE else NEXT) for name in (CANDIDATE, NEXT)
    )
    assert len(before & after) / len(before) == pytest.approx(0.2, abs=0.04)


def test_the_baseline_keeps_its_users_whoever_the_candidate_is() -> None:
    drawn = _drawn(_split(0.3, 0.1), OLD)
    assert _drawn(_split(0.0, 0.1), OLD) == drawn
    assert _drawn(_split(0.9, 0.1, name=NEXT), OLD) == drawn
    other = Route(stable=NEXT, baseline=BASE, baseline_share=0.1)
    assert _drawn(other, BASE) == drawn, "and whichever adapter it is"


@given(st.text(), st.floats(0, 1))
def test_a_draw_is_one_of_the_places_and_always_the_same(key: str, share: float) -> None:
    route = _split(share, 1 - share)
    assert draw(route, key) == draw(route, key)
    assert draw(route, key) in {STABLE, CANDIDATE, OLD}


def test_a_request_sticks_to_its_user_else_its_conversation_else_itself() -> None:
    talk = {"conversation_id": "7", "page": "1"}
    assert sticky_key("shop", "ada", talk, "a") == sticky_key("shop", "ada", {}, "b")
    assert sticky_key("shop", None, talk, "a") == sticky_key("shop", "", talk | {"page": "2"}, "b")
    assert sticky_key("shop", None, None, "a") != sticky_key("shop", None, {}, "b")


def test_the_same_name_elsewhere_is_somebody_else() -> None:
    keys = [
        sticky_key("shop", "7", None, "x"),
        sticky_key("desk", "7", None, "x"),
        sticky_key("shop", None, {"conversation_id": "7"}, "x"),
        sticky_key("desk", None, {"conversation_id": "7"}, "x"),
        sticky_key("shop", None, None, "7"),
    ]
    assert len(set(keys)) == len(keys)
