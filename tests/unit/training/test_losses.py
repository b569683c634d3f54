"""Golden numbers, computed in float64 and reproduced to nine digits by TRL 1.16's own loss."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import dpo_sigmoid

POLICY = torch.tensor([[-42.0, -55.0], [-20.0, -18.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-45.0, -50.0], [-19.5, -18.5]], dtype=torch.float64)
BETA = 0.1


def test_the_loss_of_each_pair() -> None:
    losses = dpo_sigmoid(POLICY, REFERENCE, BETA).losses
    assert losses.tolist() == pytest.approx([0.371100666, 0.744396660], abs=1e-9)
    assert losses.mean().item() == pytest.approx(0.557748663, abs=1e-9)


def test_the_gradient_by_the_difference_of_log_ratios() -> None:
    policy = POLICY.clone().requires_grad_()
    dpo_sigmoid(policy, REFERENCE, BETA).losses.sum().backward()
    assert policy.grad is not None
    assert policy.grad[:, 0].tolist() == pytest.approx([-0.031002552, -0.052497919], abs=1e-9)
    assert policy.grad[:, 1].tolist() == pytest.approx([0.031002552, 0.052497919], abs=1e-9)


def test_rewards_margins_and_accuracy() -> None:
    outcome = dpo_sigmoid(POLICY, REFERENCE, BETA)
    assert outcome.rewards.flatten().tolist() == pytest.approx([0.3, -0.5, -0.05, 0.05])
    assert outcome.margins.tolist() == pytest.approx([0.8, -0.1])
    assert outcome.correct.tolist() == [True, False]


def test_a_policy_that_is_its_reference_loses_ln_2_exactly_and_ties_are_not_correct() -> None:
    outcome = dpo_sigmoid(REFERENCE, REFERENCE, BETA)
    assert outcome.losses.tolist() == [math.log(2), math.log(2)]
    assert not outcome.correct.any()
