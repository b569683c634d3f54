"""The sequential tests of canaries: what they promise whoever looks as often as they like, by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.canary.harm import Harm
from service.canary.power import Traffic, harm_needed, smallest_seen, table, users_needed
from service.canary.sequential import (
    RATIOS,
    Stratum,
    log_e_of_arms,
    log_e_of_bound,
    tilted,
    upper_bound,
)
from service.canary.settings import CanarySettings

ALPHA = 0.05
RUNS = 1000
STOPS_AT = len(Harm) / ALPHA  # of one kind of harm


Counts = NDArray[Any]  # [runs, users], how many so far


def log_e(fair: float, hits: Counts, misses: Counts) -> NDArray[np.float64]:
    """`log_e_of_arms` of one stratum, and `log_e_of_bound`, for many counts at once; the same numbers."""
    bets = np.array([tilted(fair, ratio) for ratio in RATIOS])
    grown = hits[..., None] * np.log(bets / fair) + misses[..., None] * np.log((1 - bets) / (1 - fair))
    top = grown.max(-1)
    found = top + np.log(np.exp(grown - top[..., None]).mean(-1))
    last = int(hits.flat[-1]), int(misses.flat[-1])
    assert found.flat[-1] == pytest.approx(log_e_of_arms([Stratum(fair, *last)]))
    assert found.flat[-1] == pytest.approx(log_e_of_bound(last[0], sum(last), fair))
    return found


def stops(share: float, rate: float, times: float, users: int, e_value: float, runs: int = RUNS) -> int:
    """How many of the canaries, of so many users each, were ever stopped; looked at after each of the users."""
    chance = np.random.default_rng(5)
    candidate = chance.random((runs, users)) < share
    harmed = chance.random((runs, users)) < np.where(candidate, rate * times, rate)
    arms = [np.cumsum(harmed & arm, axis=1) for arm in (candidate, ~candidate)]
    return int((log_e(share, *arms).max(1) >= math.log(e_value)).sum())


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_a_harmless_candidate_is_stopped_no_more_often_than_alpha_though_one_looks_all_the_time(share: float) -> None:
    assert stops(share, 0.2, 1.0, 1000, 1 / ALPHA) <= ALPHA * RUNS


def test_a_better_candidate_is_hardly_ever_stopped() -> None:
    assert stops(0.25, 0.3, 0.5, 1000, 1 / ALPHA) <= RUNS / 1000


def test_nights_on_which_everything_goes_wrong_for_everybody_stop_no_candidate() -> None:
    """Only the draw is relied on. Steps whose users, and whose luck, differ are no harm either."""
    stopped, chance = 0, np.random.default_rng(7)
    for _ in range(RUNS):
        strata = []
        for share, rate in ((0.05, 0.02), (0.5, 0.6)):
            candidate, harmed = chance.random(200) < share, chance.random(200) < rate
            strata.append(Stratum(share, int((candidate & harmed).sum()), int((~candidate & harmed).sum())))
        stopped += log_e_of_arms(strata) >= math.log(1 / ALPHA)
    assert stopped <= ALPHA * RUNS


@pytest.mark.parametrize(
    ("up_rate", "worse_by", "voters"),
    [(0.80, 0.05, 3700), (0.80, 0.15, 480), (0.80, 0.40, 110)],
    ids=["80 to 75 %", "80 to 65 %", "80 to 40 %"],
)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_worse_votes_are_found_with_the_number_of_voters_that_is_said(
    up_rate: float, worse_by: float, voters: int, share: float
) -> None:
    """Voters of the candidate. A test that looks once, at one kind of harm, needs 1,000 and 135 for the first two."""
    rate, times = 1 - up_rate, (1 - up_rate + worse_by) / (1 - up_rate)
    users = math.ceil(users_needed(rate, times, share, STOPS_AT))
    assert users * share <= voters
    runs = 200 if users < 20_000 else 60
    assert stops(share, rate, times, users, STOPS_AT, runs) >= 0.78 * runs


def test_what_is_tolerated_is_no_harm_and_more_than_that_is() -> None:
    twice = [Stratum(0.5, 667, 333)]
    assert log_e_of_arms(twice, tolerated=1.0) > math.log(STOPS_AT)
    assert log_e_of_arms(twice, tolerated=2.0) < 0
    assert harm_needed(2.0, 0.5, STOPS_AT, tolerated=2.0) == math.inf


def test_nobody_harmed_says_nothing() -> None:
    assert log_e_of_arms([]) == log_e_of_arms([Stratum(0.1, 0, 0)]) == 0
    assert log_e_of_arms([Stratum(0.0, 0, 40), Stratum(1.0, 40, 0)]) == 0, "who was not drawn by chance says nothing"


@given(st.floats(0.01, 0.99), st.integers(0, 200), st.integers(0, 200))
def test_the_bet_on_one_more_harm_is_fair(share: float, candidate: int, stable: int) -> None:
    """Before it is known whose user it is, the next harm makes the e-value neither larger nor smaller in the mean."""
    now = log_e_of_arms([Stratum(share, candidate, stable)])
    won = log_e_of_arms([Stratum(share, candidate + 1, stable)])
    lost = log_e_of_arms([Stratum(share, candidate, stable + 1)])
    assert share * math.exp(won - now) + (1 - share) * math.exp(lost - now) == pytest.approx(1)


@pytest.mark.parametrize(("users", "harmed"), [(100, 3), (1000, 30)])
def test_a_rate_within_its_bound_is_rarely_told_from_it(users: int, harmed: int) -> None:
    found = np.random.default_rng(3).random((RUNS, 500)) < harmed / users
    hits = np.cumsum(found, axis=1)
    reached = log_e(upper_bound(harmed, users), hits, np.arange(1, 501) - hits).max(1) >= math.log(1 / ALPHA)
    assert reached.sum() <= ALPHA * RUNS


def test_an_upper_bound_is_above_the_share_and_is_one_to_bet_on() -> None:
    for harmed, users in ((0, 5), (1, 10), (50, 100), (10, 10)):
        assert harmed / users <= upper_bound(harmed, users) + 1 / users
        assert 0 < upper_bound(harmed, users) < 1
    assert upper_bound(30, 1000) < upper_bound(3, 100)


def test_the_share_of_harm_follows_from_the_share_of_users() -> None:
    assert tilted(0.5, 3.0) == 0.75
    assert tilted(0.05, 1.0) == 0.05


# --- what is said beforehand --------------------------------------------------------------------------

TRAFFIC = Traffic(hours=100, users=10_000, harmed={Harm.DISLIKED: 200, Harm.FAILED: 0})


def test_the_table_says_after_how_long_each_size_of_harm_is_seen() -> None:
    rows = [s for s in table(TRAFFIC, CanarySettings(steps=(0.05, 0.5, 1.0))) if s.harm is Harm.DISLIKED]
    assert {row.share for row in rows} == {0.05, 0.5}
    of_half = [row for row in rows if row.share == 0.5]
    assert [row.times for row in of_half] == [1.25, 1.5, 2.0, 4.0]
    hours = [row.hours for row in of_half if row.hours is not None]
    assert hours == sorted(hours, reverse=True)
    assert len(hours) == 4
    doubled = of_half[2]
    assert doubled.users is not None and doubled.hours is not None
    assert doubled.hours == pytest.approx(doubled.users / 0.5 / TRAFFIC.users_per_hour, rel=0.01)
    slower = next(row for row in rows if row.share == 0.05 and row.times == 2.0)
    assert slower.hours is not None
    assert slower.hours > doubled.hours


def test_harm_that_was_never_seen_and_traffic_that_is_not_there_have_no_time() -> None:
    assert {s.hours for s in table(TRAFFIC, CanarySettings()) if s.harm is Harm.FAILED} == {None}
    nobody = Traffic(hours=100, users=0, harmed={})
    assert {(s.users, s.hours) for s in table(nobody, CanarySettings(steps=(0.1,)))} == {(None, None)}


def test_the_smallest_harm_that_is_seen_shrinks_with_time() -> None:
    settings = CanarySettings()
    day, week = (smallest_seen(TRAFFIC, settings, Harm.DISLIKED, 0.5, hours) for hours in (24, 168))
    assert day is not None and week is not None
    assert 1 < week < day
    assert smallest_seen(TRAFFIC, settings, Harm.DISLIKED, 0.5, 0.01) is None
    assert smallest_seen(TRAFFIC, settings, Harm.FAILED, 0.5, 1000) is None
