"""Each formula of the data report against numbers worked out by hand or printed in its source."""

from __future__ import annotations

from collections import Counter
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.report.formulas import (
    detectable_win_rate,
    geometric_mean,
    gini,
    pairs_needed,
    pearson,
    reliability,
    wilson,
)

COUNTS = st.dictionaries(st.integers(0, 1000), st.integers(1, 1000), max_size=8)
UNITS = st.dictionaries(st.tuples(*[st.integers(0, 9)] * 3), st.integers(0, 50), max_size=8)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Agresti and Coull (1998): z² / (n + z²) where nothing succeeded
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (80, 100, 0.7112, 0.8666),
    ],
)
def test_wilson_s_interval(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=1e-4)


def test_of_nothing_there_is_no_interval() -> None:
    assert wilson(0, 0) is None


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_interval_holds_the_share_and_stays_between_0_and_1(a: int, b: int) -> None:
    count, total = min(a, b), max(a, b)
    interval = wilson(count, total)
    assert (interval is None) == (total == 0)
    if interval is not None:
        assert 0 <= interval.low <= count / total <= interval.high <= 1


@pytest.mark.parametrize(
    ("people_of", "expected"),
    [
        ({3: 5}, 0.0),  # five people, three votes each
        ({0: 3, 4: 1}, 0.75),  # one of four gave them all: 1 - 1/4
        ({1: 1, 2: 1, 3: 1}, 2 * (1 + 4 + 9) / (3 * 6) - 4 / 3),
        ({}, None),
        ({0: 7}, None),
    ],
)
def test_gini(people_of: dict[int, int], expected: float | None) -> None:
    assert gini(people_of) == pytest.approx(expected)


@given(COUNTS)
def test_gini_is_a_share(people_of: dict[int, int]) -> None:
    value = gini(people_of)
    assert value is None or 0 <= value <= 1


def test_alpha_is_the_one_of_krippendorff_s_own_binary_example() -> None:
    """Example A of "Computing Krippendorff's Alpha-Reliability": two observers, ten units, alpha = 0.095."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = reliability(Counter((2 - m - o, m + o) for m, o in zip(meg, owen, strict=True)))
    assert (found.units, found.votes, found.raw) == (10, 20, pytest.approx(0.6))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_three_votes_on_one_thing() -> None:
    """(2, 1) and (0, 3): o_cc = 2/2 and 6/2 = 4 of 6 agree; by chance 36 - 4 - 16 = 16; 1 - 5 * 2 / 16."""
    found = reliability({(2, 1): 1, (0, 3): 1})
    assert (found.units, found.votes) == (2, 6)
    assert found.raw == pytest.approx(4 / 6)
    assert found.alpha == pytest.approx(1 - 5 * 2 / 16)


def test_perfect_agreement_has_alpha_1_and_one_category_has_none() -> None:
    assert reliability({(2, 0): 3, (0, 2): 3}).alpha == 1
    assert reliability({(2, 0): 3}) == (3, 6, 1.0, None)


def test_a_thing_with_one_vote_tells_nothing_of_agreement() -> None:
    assert reliability({(1, 0): 9, (0, 1): 4, (0, 0): 2}) == (0, 0, None, None)
    assert reliability({(1, 0): 9, (1, 1): 1}) == reliability({(1, 1): 1})


@given(UNITS)
def test_agreement_is_a_share_and_alpha_at_most_1(units: dict[tuple[int, ...], int]) -> None:
    found = reliability(units)
    assert found.raw is None or 0 <= found.raw <= 1
    assert found.alpha is None or -1 <= found.alpha <= 1 + 1e-12


def test_pearson() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert pearson([1, 2, 3], [3, 1, 2]) == pytest.approx(-0.5)
    assert pearson([1, 1], [1, 2]) is None
    assert pearson([], []) is None


def test_twice_as_long_and_half_as_long_cancel_out() -> None:
    assert geometric_mean([log(2), log(0.5)]) == pytest.approx(1)
    assert geometric_mean([log(4), log(1)]) == pytest.approx(2)
    assert geometric_mean([]) is None


def test_the_pairs_that_a_win_rate_needs() -> None:
    """For 60 %: (1.6449 * 0.5 + 0.8416 * sqrt(0.24)) ** 2 / 0.01 = 152.5, so 153."""
    assert {rate: pairs_needed(rate) for rate in (0.55, 0.6, 0.73, 1.0)} == {0.55: 617, 0.6: 153, 0.73: 28, 1.0: 3}


def test_the_win_rate_that_pairs_can_show_needs_just_those() -> None:
    for pairs in (3, 27, 155, 620, 5000):
        rate = detectable_win_rate(pairs)
        assert rate is not None
        assert pairs_needed(rate) <= pairs < pairs_needed(rate - 1e-4)
    assert detectable_win_rate(2) is None
