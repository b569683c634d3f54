"""Invariant 1: before its first update the policy is its own reference, to the last bit, or the round fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.training.conftest import MakeSpec, random_pairs
from training.errors import ReferenceViolated
from training.losses import dpo_sigmoid
from training.plan import Plan, make_plan
from training.policy import Policy, score
from training.reference import identity, kept, require_equal
from training.rows import Layout
from training.steps import Descent
from training.world import ALONE

PAIRS = random_pairs(24)
LAYOUTS: dict[str, Layout] = {"llama": "shared", "qwen3": "shared", "gemma": "dense"}


def plan_for(layout: Layout) -> Plan:
    return make_plan(PAIRS, [], layout, pairs_per_step=8, token_budget=256, seed=0)


@pytest.mark.parametrize("architecture", LAYOUTS)
def test_step_0_is_exact_with_an_adapter_that_is_not_zero(
    architecture: str, moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    policy, plan = moved_policy(architecture), plan_for(LAYOUTS[architecture])
    reference = score(policy, PAIRS, plan.micro_batches, plan.layout, ALONE)
    descent = Descent(make_spec(architecture), policy, PAIRS, reference, plan.layout, ALONE)
    descent.run(plan.schedule(epochs=1, seed=0), lambda step: None)
    assert descent.step0_max_abs_logratio == 0.0
    assert descent.step0_loss == pytest.approx(math.log(2), abs=1e-15)


def test_a_reference_of_another_policy_fails_the_round_before_any_update(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    policy, plan = moved_policy("llama"), plan_for("shared")
    reference = score(policy, PAIRS, plan.micro_batches, plan.layout, ALONE)
    first = plan.epoch[0][0][0]
    reference[first, 0] += 1e-9
    before = policy.weights()
    descent = Descent(make_spec(), policy, PAIRS, reference, plan.layout, ALONE)
    with pytest.raises(ReferenceViolated, match=r"loss 0\.69314718.*log-ratio\| 1\.000e-09 nats"):
        descent.run(plan.schedule(epochs=1, seed=0), lambda step: None)
    assert all((before[name] == after).all() for name, after in policy.weights().items())


def test_the_base_models_log_probs_are_no_reference_for_a_continued_adapter(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    policy, plan = moved_policy("llama"), plan_for("shared")
    with policy.model.disable_adapter():
        reference = score(policy, PAIRS, plan.micro_batches, plan.layout, ALONE)
    descent = Descent(make_spec(), policy, PAIRS, reference, plan.layout, ALONE)
    with pytest.raises(ReferenceViolated):
        descent.run(plan.schedule(epochs=1, seed=0), lambda step: None)


def test_inexact_kernels_are_allowed_a_tolerance_and_no_more() -> None:
    reference = torch.tensor([[-30.0, -31.0]], dtype=torch.float64)
    for offset, accepted in ((0.01, True), (0.2, False)):
        policy = reference + offset
        outcome = dpo_sigmoid(policy, reference, beta=0.1)
        if accepted:
            assert require_equal(policy, reference, outcome, exact=False)[1] == pytest.approx(offset)
        else:
            with pytest.raises(ReferenceViolated, match=r"tolerance 0\.05"):
                require_equal(policy, reference, outcome, exact=False)
    with pytest.raises(ReferenceViolated):
        require_equal(reference + 0.01, reference, dpo_sigmoid(reference + 0.01, reference, 0.1), exact=True)


def test_not_a_number_is_no_equality() -> None:
    nan = torch.full((1, 2), math.nan, dtype=torch.float64)
    with pytest.raises(ReferenceViolated):
        require_equal(nan, nan, dpo_sigmoid(nan, nan, beta=0.1), exact=False)


def test_kept_log_probs_are_loaded_and_never_taken_again(tmp_path: Path) -> None:
    path, taken = tmp_path / "storage" / "reference.safetensors", torch.rand(4, 2, dtype=torch.float64)
    same = identity({"adapter": "a"})
    assert kept(path, same, lambda: taken) is taken
    again = kept(path, same, lambda: pytest.fail("taken from a policy that may have moved"))
    assert torch.equal(again, taken)


def test_log_probs_of_another_identity_are_replaced(tmp_path: Path) -> None:
    path, first, second = tmp_path / "reference.safetensors", torch.zeros(2, 2), torch.ones(2, 2)
    kept(path, identity({"adapter": "a"}), lambda: first)
    assert torch.equal(kept(path, identity({"adapter": "b"}), lambda: second), second)
    assert torch.equal(kept(path, identity({"adapter": "b"}), lambda: first), second)
