"""What a round would take: by the rounds before it, and before the first by a guess."""

from __future__ import annotations

import pytest

from service.estimates import Base, Past, estimate

BASE = Base(parameters=1_000_000_000, bytes_per_parameter=4, device="cpu", cores=4)


def past(examples: int, *, odd: float = 1.0, memory: int | None = 2 << 30) -> Past:
    """A round with 100 tokens an example, 1 ms a token, 3 s to load and write, 7 s beside training; times `odd`."""
    tokens = 100 * examples
    learning = odd * tokens / 1000
    phases = {
        "load": 2.0,
        "reference": 0.2 * learning,
        "train": 0.7 * learning,
        "evaluate": 0.1 * learning,
        "write": 1.0,
    }
    states = {"queued": 0.5, "collecting": 0.5, "training": 4.0 + learning + 3.0, "judging": 2.0, "canary": 86400.0}
    return Past(tokens, examples, phases, states, memory)


def test_one_round_before_is_enough_to_go_by() -> None:
    said = estimate(2000, [past(1000)], BASE)
    assert (said.basis, said.rounds, said.tokens) == ("rounds", 1, 200_000)
    assert said.training_seconds == pytest.approx(203)
    assert said.seconds == pytest.approx(210), "what a round does beside training does not grow; a canary comes on top"
    assert (said.seconds_low, said.seconds_high) == (None, None), "one round says nothing of how far they differ"
    assert said.memory_bytes == 2 << 30


def test_rounds_of_several_sizes_agree_on_what_a_token_takes() -> None:
    said = estimate(500, [past(100), past(1000), past(4000)], BASE)
    assert said.seconds == pytest.approx(60)
    assert said.seconds_low == pytest.approx(60) == said.seconds_high


def test_an_odd_round_widens_the_range_and_hardly_moves_the_estimate() -> None:
    said = estimate(1000, [past(1000), past(1000), past(1000), past(100, odd=3.0)], BASE)
    assert said.seconds == pytest.approx(110, rel=0.1)
    assert said.seconds_low is not None and said.seconds_high is not None
    assert said.seconds_low <= said.seconds < 1.5 * said.seconds < said.seconds_high


def test_the_most_memory_that_a_round_needed_is_what_the_next_may_need() -> None:
    rounds = [past(10, memory=None), past(10, memory=3 << 30), past(10, memory=1 << 30)]
    assert estimate(10, rounds, BASE).memory_bytes == 3 << 30
    assert estimate(10, rounds[:1], BASE).memory_bytes is None


def test_a_round_whose_times_are_not_known_counts_with_its_phases() -> None:
    said = estimate(1000, [Past(100_000, 1000, past(1000).phases, {}, None)], BASE)
    assert said.seconds == pytest.approx(103)


def test_rounds_that_trained_nothing_are_nothing_to_go_by() -> None:
    assert estimate(10, [Past(0, 0, {}, {}, None)], BASE).basis == "guess"


def test_before_the_first_round_it_is_a_guess_that_grows_with_model_and_data() -> None:
    said = estimate(1000, [], BASE)
    assert (said.basis, said.rounds, said.seconds_low, said.seconds_high) == ("guess", 0, None, None)
    assert said.memory_bytes is not None and said.memory_bytes > 4 * BASE.parameters
    assert estimate(2000, [], BASE).training_seconds == pytest.approx(2 * said.training_seconds)
    larger = Base(2 * BASE.parameters, 4, "cpu", 4)
    assert estimate(1000, [], larger).training_seconds == pytest.approx(2 * said.training_seconds)
    on_gpu = Base(BASE.parameters, 2, "gpu", 4)
    assert estimate(1000, [], on_gpu).training_seconds < said.training_seconds / 100
