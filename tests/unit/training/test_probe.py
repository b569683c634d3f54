"""A probe sees how far a policy has moved, and what it gives to each token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import random_pairs, random_thumbs
from training.pairs import Pair
from training.policy import Policy
from training.probe import MAX_ANSWER_TOKENS, MAX_EXAMPLES, probe
from training.rows import Layout

EXAMPLES = [*random_pairs(5), *random_thumbs(2)]


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drift_is_zero_at_first_and_grows(
    architecture: str, layout: Layout, moved_policy: Callable[[str], Policy]
) -> None:
    policy, looks = moved_policy(architecture), probe(EXAMPLES, layout)
    previous, base = looks.look(policy), looks.look_at_base(policy)
    same = looks.drift(looks.look(policy), previous, base, policy)
    assert same is not None
    assert same.kl_previous == 0.0
    assert same.kl_base > 0.0
    assert same.tokens == sum(len(states) for states in previous)
    found = [0.0]
    for factor in (1.05, 1.3):
        with torch.no_grad():
            for parameter in policy.trainable:
                parameter.mul_(factor)
        moved = looks.drift(looks.look(policy), previous, base, policy)
        assert moved is not None
        found.append(moved.kl_previous)
    assert found == sorted(set(found))


def test_drift_counts_the_tokens_of_all_answers(moved_policies: dict[str, Policy]) -> None:
    policy, pairs = moved_policies["llama"], random_pairs(3)
    looks = probe(pairs, "shared")
    states = looks.look(policy)
    drift = looks.drift(states, states, states, policy)
    assert drift is not None
    assert drift.tokens == sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    assert (drift.kl_previous, drift.kl_base) == (0.0, 0.0)


def test_a_fresh_adapter_is_the_base(moved_policy: Callable[[str], Policy]) -> None:
    policy, looks = moved_policy("llama"), probe(EXAMPLES, "shared")
    with torch.no_grad():
        for name, parameter in policy.named_parameters.items():
            if ".lora_B." in name:
                parameter.zero_()
    states = looks.look(policy)
    drift = looks.drift(states, states, looks.look_at_base(policy), policy)
    assert drift is not None
    assert drift.kl_base == 0.0


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_are_first_answers_with_the_log_prob_of_each_token(
    architecture: str, layout: Layout, moved_policies: dict[str, Policy]
) -> None:
    policy, looks = moved_policies[architecture], probe(EXAMPLES, layout)
    samples = looks.samples(looks.look(policy), policy)
    assert len(samples) == len(EXAMPLES)
    for example, sample in zip(EXAMPLES, samples, strict=True):
        answer = example.chosen if isinstance(example, Pair) else example.answer
        assert (sample.prompt_token_ids, sample.token_ids) == (example.prompt, answer)
        assert sum(sample.logprobs) == pytest.approx(policy.own_logprob(example.prompt, answer), abs=1e-3)
        first = policy.own_logprob(example.prompt, answer[:1])
        assert sample.logprobs[0] == pytest.approx(first, abs=1e-4)


def test_a_probe_stays_small() -> None:
    assert len(probe(random_pairs(MAX_EXAMPLES + 10), "shared").items) == MAX_EXAMPLES
    long = [Pair(str(n), (6, n), (7,) * 200, (8,) * 200) for n in range(9)]
    assert len(probe(long, "shared").items) == MAX_ANSWER_TOKENS // 400


def test_one_example_beyond_all_limits_is_looked_at_all_the_same() -> None:
    (one,) = probe([Pair("long", (6,), (7,) * MAX_ANSWER_TOKENS, (8,))], "shared").items
    assert one.example.prompt == (6,)


def test_nothing_to_look_at_has_no_drift(moved_policies: dict[str, Policy]) -> None:
    looks = probe([], "shared")
    assert looks.drift([], [], [], moved_policies["llama"]) is None
    assert looks.samples([], moved_policies["llama"]) == []
