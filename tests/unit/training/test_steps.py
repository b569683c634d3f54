"""The optimiser's steps: the rate's shape, and gradients that no division of labour changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.unit.training.conftest import MakeSpec, random_pairs
from training.contracts import StepMetrics
from training.errors import NotFinite
from training.plan import make_plan
from training.policy import Policy, score
from training.steps import Descent, learning_rate
from training.world import ALONE, World

PAIRS = random_pairs(16)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [learning_rate(step, 20, peak=1.0, warmup_ratio=0.2) for step in range(1, 21)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.02


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
def test_a_single_step_has_the_whole_learning_rate(warmup_ratio: float) -> None:
    assert learning_rate(1, 1, peak=0.5, warmup_ratio=warmup_ratio) == 0.5


def run(
    policy: Policy, make_spec: MakeSpec, *, token_budget: int, world: World = ALONE, **fields: float
) -> list[StepMetrics]:
    spec = make_spec(**fields)
    plan = make_plan(PAIRS, [], "shared", pairs_per_step=8, token_budget=token_budget, seed=0)
    reference = score(policy, PAIRS, plan.micro_batches, plan.layout, ALONE)
    return Descent(spec, policy, PAIRS, reference, plan.layout, world).run(
        plan.schedule(epochs=2, seed=0), lambda step: None
    )


def test_steps_do_not_depend_on_the_size_of_micro_batches(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    one_by_one = run(moved_policy("llama"), make_spec, token_budget=1)
    all_at_once = run(moved_policy("llama"), make_spec, token_budget=10_000)
    for ours, theirs in zip(one_by_one, all_at_once, strict=True):
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.logps_chosen == pytest.approx(theirs.logps_chosen, rel=1e-5)


@dataclasses.dataclass(frozen=True)
class HalfOfTwo(World):
    """A worker that computes every second micro-batch and adds what the other one, run before, had contributed."""

    heard: list[Tensor] = dataclasses.field(default_factory=list)
    said: list[Tensor] = dataclasses.field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.said.append(tensor.clone())
        if self.heard:
            tensor += self.heard.pop(0)
        return tensor


def test_two_workers_share_a_step_and_get_the_gradient_of_one(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    alone, plan = moved_policy("llama"), make_plan(PAIRS, [], "shared", pairs_per_step=16, token_budget=64, seed=0)
    reference = score(alone, PAIRS, plan.micro_batches, plan.layout, ALONE)
    (step,) = plan.epoch
    members = [i for batch in step for i in batch]
    expected = Descent(make_spec(), alone, PAIRS, reference, plan.layout, ALONE).gradients(step, members)

    second = HalfOfTwo(1, 2, ALONE.device)
    Descent(make_spec(), moved_policy("llama"), PAIRS, reference, plan.layout, second).gradients(step, members)
    first, policy = HalfOfTwo(0, 2, ALONE.device, heard=second.said), moved_policy("llama")
    found = Descent(make_spec(), policy, PAIRS, reference, plan.layout, first).gradients(step, members)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for ours, theirs in zip(policy.trainable, alone.trainable, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_gradients_that_are_not_finite_end_the_round(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec
) -> None:
    policy = moved_policy("llama")
    policy.trainable[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFinite, match=r"step 1: loss .* gradient norm nan"):
        run(policy, make_spec, token_budget=256)


def test_log_probs_that_are_not_finite_are_never_compared(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    plan = make_plan(PAIRS, [], "shared", pairs_per_step=8, token_budget=256, seed=0)
    with torch.no_grad():
        policy.trainable[0].fill_(float("nan"))
    with pytest.raises(NotFinite, match="log-probs of pair '0000' are not finite"):
        score(policy, PAIRS, plan.micro_batches, plan.layout, ALONE)
