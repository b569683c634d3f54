"""What follows from a look at a canary, and at a promoted adapter. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest

from service.canary.deciding import Counts, Decision, Evidence, look, watch
from service.canary.harm import Harm, Usual
from service.canary.sequential import Stratum
from service.canary.settings import CanarySettings, Tolerated, WatchSettings
from service.canary.state import CanaryState

BEGAN = datetime(2026, 1, 2, 3, tzinfo=UTC)
SETTINGS = CanarySettings(steps=(0.5, 1.0), soak_minutes=60, min_requests=100, give_up_hours=24)
STATE = CanaryState(candidate="new", stable="old", usual=Usual()).begin(0.5, 0.5, BEGAN)


def at(hours: float = 2, requests: int = 500, **harmed: tuple[int, int]) -> Evidence:
    """What is seen so long after the step began; `disliked=(3, 1)` are users of candidate and stable."""
    strata = {Harm(harm): [Stratum(0.5, *arms)] for harm, arms in harmed.items()}
    users = {"candidate": 200, "stable": 200}
    return Evidence(now=BEGAN + timedelta(hours=hours), strata=strata, users=users, requests=requests)


def decided(evidence: Evidence, settings: CanarySettings = SETTINGS, state: CanaryState = STATE) -> Decision:
    return look(state, evidence, settings)[1]


def test_a_step_that_was_long_enough_and_did_no_harm_is_followed_by_the_next() -> None:
    assert decided(at(disliked=(10, 12))).do == "advance"


@pytest.mark.parametrize(
    ("evidence", "why"),
    [
        (at(hours=0.5), "this step lasts 30 minutes more"),
        (at(requests=99), "99 of 100 requests of this step"),
    ],
)
def test_a_step_lasts_until_enough_was_seen(evidence: Evidence, why: str) -> None:
    assert decided(evidence) == Decision("continue", why)


@pytest.mark.parametrize("harm", list(Harm))
def test_harm_of_each_kind_stops_the_canary_at_once(harm: Harm) -> None:
    early = decided(at(hours=0.01, requests=3, **{harm.value: (120, 10)}))
    assert early.do == "stop"
    assert early.why.startswith(f"{harm}: 120 users of the candidate and 10 of the adapter before")


def test_alpha_is_of_all_kinds_of_harm_together() -> None:
    seen = look(STATE, at(), SETTINGS)[0].seen
    assert {one.bound for one in seen} == {len(Harm) / SETTINGS.alpha}
    assert [one.harm for one in seen] == list(Harm)


def test_longer_answers_are_harm_only_where_far_more_of_them_are_long() -> None:
    assert decided(at(long=(60, 30))).do == "advance"
    assert decided(at(long=(170, 20))).do == "stop"
    strict = SETTINGS.model_copy(update={"tolerated": Tolerated(long=1.0)})
    assert decided(at(long=(90, 30)), strict).do == "stop"


def test_what_looks_like_harm_holds_the_next_step_until_it_has_gone_by() -> None:
    state, decision = look(STATE, at(disliked=(30, 11)), SETTINGS)
    assert (decision.do, state.held) == ("continue", True)
    assert "disliked looks like harm" in decision.why
    between = at(disliked=(36, 18))
    assert decided(between).do == "advance", "on its own it would not have held a step"
    state, decision = look(state, between, SETTINGS)
    assert (decision.do, state.held) == ("continue", True)
    state, decision = look(state, at(disliked=(40, 38)), SETTINGS)
    assert (decision.do, state.held) == ("advance", False)


def test_a_step_that_waits_for_an_operator_waits_for_this_step_s() -> None:
    asking = SETTINGS.model_copy(update={"advance": "approved"})
    assert decided(at(), asking) == Decision("continue", "an operator must approve the next step")
    approved = STATE.approve("tess")
    assert decided(at(), asking, approved).do == "advance"
    following = approved.end(BEGAN).begin(0.75, 0.75, BEGAN)
    assert decided(at(), asking, following).do == "continue"


def test_a_canary_that_nobody_asks_ends_without_a_promotion() -> None:
    assert decided(at(hours=23, requests=5)).do == "continue"
    stopped = decided(at(hours=24, requests=5))
    assert stopped == Decision("stop", "no decision in 24 hours: 5 of 100 requests of this step")
    assert decided(at(hours=48)).do == "advance", "who has seen enough is not in a hurry"


@pytest.mark.parametrize("steps", [(0.5, 0.25), (0.5, 0.5), (0.0,), (1.5,)])
def test_steps_must_grow_within_all_users(steps: tuple[float, ...]) -> None:
    with pytest.raises(pydantic.ValidationError):
        CanarySettings(steps=steps)


def test_the_last_step_is_the_promotion() -> None:
    assert CanarySettings(steps=(0.05, 0.25, 1.0)).shares == CanarySettings(steps=(0.05, 0.25)).shares == (0.05, 0.25)
    assert CanarySettings().shares == CanarySettings(steps=(1.0,)).shares == ()


# --- after the promotion ------------------------------------------------------------------------------


def seen(now: dict[str, Any], before: dict[str, Any]) -> str | None:
    counts = [Counts(each.pop("users"), {Harm(harm): n for harm, n in each.items()}) for each in (now, before)]
    return watch(counts[0], counts[1], WatchSettings(), Tolerated())[1]


def test_a_promoted_adapter_stays_while_it_does_as_the_one_before() -> None:
    assert seen({"users": 1000, "disliked": 22, "failed": 1}, {"users": 5000, "disliked": 100, "failed": 4}) is None


@pytest.mark.parametrize("harm", ["disliked", "failed", "refused"])
def test_a_promoted_adapter_that_does_far_more_harm_goes_back(harm: str) -> None:
    why = seen({"users": 1000, harm: 150}, {"users": 5000, harm: 100})
    assert why is not None
    assert why.startswith(f"{harm}: 15.0% of 1000 users an hour, 2.0% with the adapter before")


def test_other_days_are_a_little_different_and_that_is_no_harm() -> None:
    assert seen({"users": 1000, "disliked": 28}, {"users": 5000, "disliked": 100}) is None


def test_how_soon_and_how_long_answers_are_is_not_compared_with_other_days() -> None:
    assert seen({"users": 1000, "slow": 1000, "long": 1000}, {"users": 5000}) is None


def test_without_anybody_to_compare_with_nothing_is_said() -> None:
    assert seen({"users": 100, "disliked": 100}, {"users": 0}) is None
    assert seen({"users": 0}, {"users": 100}) is None
