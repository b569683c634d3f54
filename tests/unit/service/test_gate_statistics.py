"""Numbers behind the gate, against known values and by simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.gate.comparison import Duel, compare
from service.gate.statistics import LARGEST_EXACT, Paired, length_controlled, mean_interval, sign_test


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (5, 0, 1 / 32), (0, 5, 1.0), (3, 1, 5 / 16), (9, 3, 299 / 4096)]
)
def test_the_sign_test_is_exact(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)


def test_beyond_what_is_summed_up_the_approximation_goes_on_where_it_ended() -> None:
    half = LARGEST_EXACT // 2
    assert sign_test(half + 51, half - 50) == pytest.approx(sign_test(half + 50, half - 50), abs=2e-3)
    assert sign_test(10**6, 10**6) == pytest.approx(0.5, abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_noise_of_a_paired_difference_is_its_standard_error(both: list[tuple[bool, bool]]) -> None:
    found = Paired.of([b for b, _ in both], [a for _, a in both])
    differences = [int(a) - int(b) for b, a in both]
    mean = sum(differences) / len(both)
    variance = sum((d - mean) ** 2 for d in differences) / len(both)
    assert found.noise == pytest.approx(math.sqrt(variance / len(both)), abs=1e-12)
    assert found.share - found.share_before == pytest.approx(mean)


def test_an_interval_needs_two_values() -> None:
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="two values"):
        length_controlled([1.0], [0.0])


def _duels(chance: random.Random, prompts: int, better: float, by_length: float) -> list[tuple[float, float]]:
    """(score, how much longer): the judge likes ours by `better`, and whatever is longer by `by_length`; logits."""
    found = []
    for _ in range(prompts):
        longer = chance.gauss(60, 50)  # ours is longer as a rule
        logit = better + by_length * math.tanh(longer / 50)
        found.append((float(chance.random() < 1 / (1 + math.exp(-logit))), longer))
    return found


def test_a_judge_that_only_likes_length_leaves_no_win() -> None:
    duels = _duels(random.Random(1), 600, better=0.0, by_length=2.0)
    scores, longer = zip(*duels, strict=True)
    assert mean_interval(scores).low > 0.6, "whatever the lengths, ours seems to win"
    controlled = length_controlled(scores, longer)
    assert controlled.low < 0.5 < controlled.high


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    chance, held = random.Random(2), 0
    for _ in range(200):
        scores, longer = zip(*_duels(chance, 150, better=0.8, by_length=0.5), strict=True)
        found = length_controlled(scores, longer)
        held += found.low <= 1 / (1 + math.exp(-0.8)) <= found.high
    assert held >= 180


def test_where_every_score_is_a_win_the_interval_stays_finite() -> None:
    found = length_controlled([1.0] * 50, [float(n % 7) for n in range(50)])
    assert 0.8 < found.low < found.mean < 1


# --- duels --------------------------------------------------------------------------------------------


def test_a_judge_that_likes_the_first_place_says_nothing() -> None:
    found = compare([Duel(f"p{n}", 1.0, 0.0, 3) for n in range(20)])
    assert found is not None
    assert (found.swayed, found.ties, found.plain.mean, found.win_rate.mean) == (1.0, 1.0, 0.5, pytest.approx(0.5))


def test_several_answers_to_one_prompt_count_once() -> None:
    often = [Duel("asked often", 1.0, 1.0, 0)] * 50
    found = compare([*often, *(Duel(f"p{n}", 0.0, 0.0, 0) for n in range(9))])
    assert found is not None
    assert (found.prompts, found.plain.mean) == (10, pytest.approx(0.1))


def test_one_prompt_decides_nothing() -> None:
    assert compare([Duel("p", 1.0, 1.0, 0)] * 9) is None
    assert compare([]) is None
