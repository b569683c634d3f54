"""The optimiser's steps: the rate's shape, and gradients that no division of labour changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.conftest import HalfOfTwo, MakeSpec, plan_of, random_pairs, random_thumbs, written
from training.contracts import RoundSpec, StepMetrics
from training.errors import NotFinite, ReferenceViolated
from training.losses import replay_weights
from training.objective import PAIRED, UNPAIRED
from training.pairs import Example, Pair
from training.plan import Plan
from training.policy import Policy
from training.rows import FULL
from training.score import score
from training.steps import Descent, learning_rate
from training.world import ALONE, World

PAIRS: list[Example] = [*random_pairs(12)]
MIXED: list[Example] = [*random_pairs(10), *random_thumbs(5, seed=1)]
THUMBS: list[Example] = [*random_thumbs(11, seed=2)]
EXAMPLES_FOR = {"dpo": PAIRS, "ipo": PAIRS, "dpo+0.2*nll_tokens": PAIRS, "dpo+kto": MIXED, "kto": THUMBS}

Start = Callable[..., tuple[Descent, Policy]]


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [learning_rate(step, 20, peak=1.0, warmup_ratio=0.2) for step in range(1, 21)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.02


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
def test_a_single_step_has_the_whole_learning_rate(warmup_ratio: float) -> None:
    assert learning_rate(1, 1, peak=0.5, warmup_ratio=warmup_ratio) == 0.5


@pytest.fixture
def start(make_spec: MakeSpec, moved_policy: Callable[[str], Policy], tmp_path: Path) -> Start:
    """A descent from its own reference, and its policy. `plan` is the plan's settings, the rest the spec's."""

    def make(
        objective: str = "dpo", *, examples: list[Example] | None = None, world: World = ALONE,
        architecture: str = "llama", plan: dict[str, Any] | None = None, **fields: Any,
    ) -> tuple[Descent, Policy]:  # fmt: skip
        spec = make_spec(architecture, rows=[], objective=objective, **fields)
        policy = moved_policy(architecture)
        kept = written(tmp_path, EXAMPLES_FOR[objective] if examples is None else examples)
        settings: dict[str, Any] = {"per_step": 6, "token_budget": 150} | (plan or {})
        steps = plan_of(kept, **settings)
        reference = score(policy, kept, steps, ALONE, spec.ld_alpha)
        return Descent(spec, policy, kept, reference, steps, world, peak_rate=1e12), policy

    return make


def run(descent: Descent) -> list[StepMetrics]:
    reported: list[StepMetrics] = []
    descent.run(reported.append)
    return reported


@pytest.mark.parametrize("objective", EXAMPLES_FOR)
def test_steps_do_not_depend_on_the_size_of_micro_batches(objective: str, start: Start) -> None:
    one_by_one, all_at_once = (
        run(start(objective, plan={"token_budget": budget}, epochs=2)[0]) for budget in (1, 10_000)
    )
    assert len(one_by_one) == 4
    for ours, theirs in zip(one_by_one, all_at_once, strict=True):
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.logps_chosen == pytest.approx(theirs.logps_chosen, rel=1e-5)
        assert ours.kl == (None if theirs.kl is None else pytest.approx(theirs.kl, rel=1e-3, abs=1e-6))


@pytest.mark.parametrize("objective", EXAMPLES_FOR)
def test_two_workers_share_a_step_and_get_the_gradient_of_one(objective: str, start: Start) -> None:
    (alone, policy), plan = start(objective, plan={"per_step": 16}), {"per_step": 16}
    step = alone._plan[0]
    expected = alone.gradients(step)
    assert len(step.micro_batches) > 1
    baseline = HalfOfTwo(0, 2, ALONE.device)  # what the second worker has to hear before it can go on: KTO's
    start(objective, plan=plan, world=baseline)[0].gradients(step)
    second = HalfOfTwo(1, 2, ALONE.device, heard=baseline.said[: bool(step.mismatched)])
    start(objective, plan=plan, world=second)[0].gradients(step)
    first, halves = start(objective, plan=plan, world=HalfOfTwo(0, 2, ALONE.device, heard=second.said))
    found = first.gradients(step)
    torch.testing.assert_close(found.policy, expected.policy, rtol=0, atol=1e-9)
    assert (found.tokens, found.padded_tokens, found.answer_tokens) == (
        expected.tokens, expected.padded_tokens, expected.answer_tokens,
    )  # fmt: skip
    for ours, theirs in zip(halves.trainable, policy.trainable, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_worker_without_a_micro_batch_of_its_own_adds_nothing(start: Start) -> None:
    whole = {"plan": {"per_step": 12, "token_budget": 10_000}}
    (alone, policy) = start(**whole)
    step = alone._plan[0]
    assert len(step.micro_batches) == 1
    alone.gradients(step)
    idle = HalfOfTwo(1, 2, ALONE.device)
    start(world=idle, **whole)[0].gradients(step)
    first, halves = start(world=HalfOfTwo(0, 2, ALONE.device, heard=idle.said), **whole)
    first.gradients(step)
    for ours, theirs in zip(halves.trainable, policy.trainable, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("objective", [*PAIRED, *UNPAIRED, "rpo", "dpo+kto"])
def test_step_0_is_exact_for_every_objective(objective: str, layout: str, start: Start) -> None:
    smoothing = {"label_smoothing": 0.1} if objective in ("cdpo", "robust") else {}
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.3}
    descent, _ = start(objective, examples=MIXED, plan={"layout": layout}, **smoothing, **weights)
    reported = run(descent)
    position = descent.position
    assert position.step0_max_abs_logratio == 0.0
    assert position.step0_loss == pytest.approx(position.step0_expected_loss, abs=1e-12)
    assert position.step0_loss == reported[0].loss
    ups = [example.up for i in descent._plan[0].members if not isinstance(example := MIXED[i], Pair)]
    of_thumbs = sum(1.3 if up else 0.7 for up in ups) / len(ups) / 2
    by_hand = {
        "dpo": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "hinge": 1.0, "sigmoid_norm": math.log(2),
        "ipo": (1 / 0.6) ** 2, "ipo_sum": (1 / 0.6) ** 2, "kto": of_thumbs, "apo_zero_unpaired": of_thumbs,
        "dpo+kto": math.log(2) + of_thumbs,
    }  # fmt: skip
    if objective in by_hand:
        assert position.step0_loss == pytest.approx(by_hand[objective], abs=1e-12)


@pytest.mark.parametrize("objective", EXAMPLES_FOR)
def test_a_reference_that_is_off_by_a_hair_is_refused_before_any_update(objective: str, start: Start) -> None:
    descent, policy = start(objective)
    before = policy.weights()
    descent._reference[descent._plan[0].members[0], 0] += 1e-9
    with pytest.raises(ReferenceViolated, match=r"log-ratio\| 1\.000e-09 nats"):
        run(descent)
    assert all((before[name] == after).all() for name, after in policy.weights().items())


def test_ktos_baseline_is_that_of_the_whole_step(start: Start) -> None:
    for plan in ({"token_budget": 1, "per_step": 11}, {"token_budget": 10_000, "per_step": 11}):
        descent, _ = start("kto", plan=plan)
        descent._reference -= torch.linspace(-1, 3, 11)[:, None, None]  # as if the policy had moved
        outcome = descent.gradients(descent._plan[0])
        ratios = (outcome.policy - outcome.reference)[:, 1, FULL]
        assert len(ratios) == 11
        assert outcome.scale.baseline.item() == pytest.approx(max(0.0, ratios.mean().item()), abs=1e-9)
    assert outcome.scale.baseline.item() > 0


def test_ktos_baseline_has_no_gradient(start: Start) -> None:
    """The mismatched answers are in the rows and yet no part of the loss."""
    descent, policy = start("kto", plan={"per_step": 11, "token_budget": 10_000})
    descent.gradients(descent._plan[0])
    with_mismatched = [parameter.grad.clone() for parameter in policy.trainable if parameter.grad is not None]
    alone, other = start("apo_zero_unpaired", examples=THUMBS, plan={"per_step": 11, "token_budget": 10_000})
    alone.gradients(alone._plan[0])  # the same loss as long as the baseline is 0
    for ours, parameter in zip(with_mismatched, other.trainable, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_sum_of_losses_has_the_sum_of_their_gradients(start: Start) -> None:
    def gradient(objective: str) -> torch.Tensor:
        descent, policy = start(objective, examples=MIXED, plan={"per_step": 10})
        descent.gradients(descent._plan[0])
        return torch.cat([parameter.grad.flatten() for parameter in policy.trainable if parameter.grad is not None])

    expected = gradient("dpo") + 0.2 * gradient("nll") + 3 * gradient("kto")
    torch.testing.assert_close(gradient("dpo+0.2*nll+3*kto"), expected, rtol=1e-3, atol=1e-6)


def test_replayed_pairs_that_are_satisfied_pull_less(start: Start) -> None:
    (one,) = random_pairs(1)
    norms = []
    for replay in (False, True):
        example = Pair(one.pair_id, one.prompt, one.chosen, one.rejected, replay=replay)
        descent, _ = start(examples=[example], beta=0.3)
        satisfied = descent._reference[0, 0, FULL] - descent._reference[0, 1, FULL]
        (step,) = run(descent)
        norms.append(step.grad_norm)
        assert step.loss == pytest.approx(math.log(2) * norms[-1] / norms[0])
    assert norms[1] < norms[0]
    weight = replay_weights(torch.stack([satisfied, satisfied.new_zeros(())])[None], beta=0.3).item()
    assert norms[1] / norms[0] == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize(("objective", "example"), [("rpo", PAIRS[0]), ("apo_zero_unpaired", THUMBS[0])])
def test_an_example_of_half_the_weight_has_half_the_gradient(objective: str, example: Example, start: Start) -> None:
    whole, half = (run(start(objective, examples=[replace(example, weight=w)])[0])[0] for w in (1.0, 0.5))
    assert half.loss == whole.loss / 2
    assert half.grad_norm == pytest.approx(whole.grad_norm / 2, rel=1e-6)
    assert half.rewards_chosen == whole.rewards_chosen


@pytest.mark.parametrize("layout", ["shared", "dense"])
def test_what_a_step_reports_of_its_own_work(layout: str, start: Start) -> None:
    descent, _ = start("dpo+kto", plan={"layout": layout}, epochs=2)
    steps = run(descent)
    rows = [descent._rows(batch, descent._plan[0]) for batch in descent._plan[0].micro_batches]
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.epoch for step in steps] == [0.5, 1.0, 1.5, 2.0]
    assert {step.steps for step in steps} == {4}
    assert steps[0].num_tokens == sum(of.tokens for of in rows)
    tokens = [later.num_tokens - earlier.num_tokens for earlier, later in itertools.pairwise(steps)]
    assert steps[0].num_tokens + tokens[0] == tokens[1] + tokens[2]  # an epoch is as long as the other
    assert steps[0].padding_fraction == pytest.approx(
        1 - steps[0].num_tokens / sum(of.input_ids.numel() for of in rows)
    )
    assert steps[0].shared_prefix_saving == pytest.approx(
        1 - steps[0].num_tokens / sum(of.unshared_tokens for of in rows)
    )
    assert (steps[0].padding_fraction > 0) is (layout == "dense")
    assert (steps[0].shared_prefix_saving > 0) is (layout == "shared")
    for step in steps:
        assert 0 < (step.mfu or 0) < 1.5
        assert (step.tokens_per_second or 0) > 0
        assert (step.kl or 0) >= 0
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)


def test_a_descent_that_has_made_all_its_steps_makes_no_more(start: Start) -> None:
    descent, policy = start()
    after: list[int] = []
    descent.run(lambda step: None, lambda: after.append(descent.position.done))
    assert after == [1, 2]
    weights = policy.weights()
    assert run(descent) == []
    assert all((weights[name] == tensor).all() for name, tensor in policy.weights().items())


def test_gradients_that_are_not_finite_end_the_round(start: Start) -> None:
    descent, policy = start()
    before = policy.weights()
    policy.trainable[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFinite, match=r"step 1: loss .* gradient norm nan"):
        run(descent)
    assert all((before[name] == after).all() for name, after in policy.weights().items())


def test_the_discounted_tail_is_what_is_learned_from(start: Start) -> None:
    """Of a chosen answer whose tail weighs nothing, only as many tokens as the rejected one has are pushed."""
    (one,) = random_pairs(1)
    long = Pair("long", one.prompt, tuple(range(20, 30)), (7, 8, 9))
    cut = Pair("cut", one.prompt, long.chosen[:3], long.rejected)
    discounted, whole = (run(start(examples=[of], ld_alpha=a)[0])[0] for of, a in ((long, 0.0), (long, 1.0)))
    of_cut = run(start(examples=[cut])[0])[0]
    assert discounted.grad_norm == pytest.approx(of_cut.grad_norm, rel=1e-3)
    assert abs(whole.grad_norm / discounted.grad_norm - 1) > 1e-2
    assert discounted.logps_chosen == whole.logps_chosen


def test_a_plan_and_a_spec_agree_on_the_steps(start: Start) -> None:
    descent, _ = start(epochs=3)
    plan: Plan = descent._plan
    spec: RoundSpec = descent._spec
    assert descent.steps == len(plan) * spec.epochs == 6
