"""Which candidates wait for an operator. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from service.approving import waits_for
from service.contracts import Candidate, Check, RoundState, Verdict
from service.triggers.settings import RoundSettings
from tests.fake_api import PASSED, a_round

FUNNEL: dict[str, Any] = {
    "votes": 100, "votes_in_pairs": 100, "left_out": {}, "pairs_from_votes": 50, "pairs_imported": 0, "users": 20, "apps": 1,
}  # fmt: skip
OUTSIDE = Candidate(directory="/x", weights_sha256="e" * 64, name=None, parent=None, assumed_base=True)
NEW_PHRASE = Verdict(
    promote=True,
    checks=(
        Check(
            name="phrases", outcome="abstain", value=0.4, bound=0.25, needed=False,
            why='"buy it now" is in 40% of its answers',
        ),
    ),
)  # fmt: skip
FLAGGED = RoundSettings(approval="when_flagged")


def asked(settings: RoundSettings = FLAGGED, verdict: Verdict = PASSED, **round: Any) -> str | None:
    return waits_for(a_round(1, RoundState.JUDGING, **({"funnel": FUNNEL} | round)), verdict, settings)


def drifted(value: float) -> Verdict:
    return Verdict(promote=True, checks=(Check(name="kl_base", outcome="pass", value=value, bound=2.0, why="nats"),))


def test_nobody_is_asked_unless_the_settings_say_so() -> None:
    assert asked(RoundSettings(), funnel=FUNNEL | {"users": 0}, candidate=OUTSIDE) is None


def test_somebody_is_always_asked_where_the_settings_say_so() -> None:
    assert asked(RoundSettings(approval="always")) == "an operator must approve"


def test_a_candidate_without_a_flag_waits_for_nobody() -> None:
    assert asked() is None
    assert asked(verdict=drifted(1.6)) is None


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"funnel": FUNNEL | {"users": 4}}, "it learned from 4 users, fewer than 5"),
        ({"funnel": FUNNEL | {"left_out": {"quarantined": 7}}}, "7 votes are in quarantine"),
        ({"candidate": OUTSIDE, "funnel": FUNNEL | {"users": 0}}, "the adapter was brought from outside by admin"),
        ({"verdict": NEW_PHRASE}, 'new phrases: "buy it now" is in 40% of its answers'),
        ({"verdict": drifted(1.8)}, "90% of the way that it may go from the base"),
    ],
)
def test_each_flag_is_named(fields: dict[str, Any], flag: str) -> None:
    assert asked(**fields) == f"an operator must approve: {flag}"
