"""Invariant 1: before its first update the policy is its own reference, to the last bit, or the round fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import HalfOfTwo, MakeSpec, plan_of, random_pairs, written
from training import lora
from training.errors import ReferenceViolated
from training.examples import Examples
from training.folder import Folder
from training.policy import Policy
from training.reference import identity, is_exact, kept, require_equal
from training.rows import Layout
from training.score import score
from training.steps import Descent
from training.world import ALONE

LN2 = math.log(2)


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    return written(tmp_path, random_pairs(12))


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_step_0_is_exact_with_an_adapter_that_is_not_zero(
    architecture: str,
    layout: Layout,
    moved_policy: Callable[[str], Policy],
    make_spec: MakeSpec,
    examples: Examples,
) -> None:
    policy, plan = moved_policy(architecture), plan_of(examples, layout)
    reference = score(policy, examples, plan, ALONE)
    descent = Descent(make_spec(architecture, rows=[]), policy, examples, reference, plan, ALONE, peak_rate=1e12)
    descent.run(lambda step: None)
    assert descent.position.step0_max_abs_logratio == 0.0
    assert descent.position.step0_loss == pytest.approx(LN2, abs=1e-15)


def test_a_reference_of_another_policy_fails_the_round_before_any_update(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec, examples: Examples
) -> None:
    policy, plan = moved_policy("llama"), plan_of(examples)
    reference = score(policy, examples, plan, ALONE)
    reference[plan[0].members[0], 0] += 1e-9
    before = policy.weights()
    descent = Descent(make_spec(rows=[]), policy, examples, reference, plan, ALONE, peak_rate=1e12)
    with pytest.raises(ReferenceViolated, match=r"loss 0\.69314718.*instead of 0\.693147181.*\| 1\.000e-09 nats"):
        descent.run(lambda step: None)
    assert all((before[name] == after).all() for name, after in policy.weights().items())


def test_the_base_models_log_probs_are_no_reference_for_a_continued_adapter(
    moved_policy: Callable[[str], Policy], make_spec: MakeSpec, examples: Examples
) -> None:
    policy, plan = moved_policy("llama"), plan_of(examples)
    with lora.without_update(policy.base):
        reference = score(policy, examples, plan, ALONE)
    descent = Descent(make_spec(rows=[]), policy, examples, reference, plan, ALONE, peak_rate=1e12)
    with pytest.raises(ReferenceViolated):
        descent.run(lambda step: None)


def test_inexact_kernels_are_allowed_a_tolerance_and_no_more() -> None:
    reference = torch.tensor([[-30.0, -31.0]], dtype=torch.float64)
    assert require_equal(reference + 0.01, reference, LN2, LN2, exact=False) == pytest.approx(0.01)
    with pytest.raises(ReferenceViolated, match=r"tolerance 0\.05"):
        require_equal(reference + 0.2, reference, LN2, LN2, exact=False)
    with pytest.raises(ReferenceViolated, match=r"tolerance 0$"):
        require_equal(reference + 0.01, reference, LN2, LN2, exact=True)


def test_equal_log_probs_with_another_loss_than_expected_are_refused() -> None:
    """So a loss that is wrong by itself is noticed too."""
    reference = torch.tensor([[-30.0, -31.0]], dtype=torch.float64)
    assert require_equal(reference, reference, LN2 + 1e-15, LN2, exact=True) == 0.0
    with pytest.raises(ReferenceViolated, match=r"loss 0\.700000000 instead of 0\.693147181"):
        require_equal(reference, reference, 0.7, LN2, exact=True)
    with pytest.raises(ReferenceViolated):
        require_equal(reference, reference, 0.8, LN2, exact=False)


def test_not_a_number_is_no_equality() -> None:
    nan, zero = (torch.full((1, 2), value, dtype=torch.float64) for value in (math.nan, 0.0))
    for log_probs, loss in ((nan, math.nan), (nan, LN2), (zero, math.nan)):
        with pytest.raises(ReferenceViolated):
            require_equal(log_probs, log_probs, loss, LN2, exact=False)


def test_only_float32_on_a_cpu_is_exact() -> None:
    assert is_exact(torch.device("cpu"), torch.float32)
    assert not is_exact(torch.device("cpu"), torch.bfloat16)
    assert not is_exact(torch.device("cuda"), torch.float32)


def test_kept_log_probs_are_loaded_and_never_taken_again(folder: Folder) -> None:
    taken = torch.rand(4, 2, 2, dtype=torch.float64)
    same = identity({"adapter": "a"})
    assert kept(folder, same, lambda: taken) is taken
    again = kept(folder, same, lambda: pytest.fail("taken from a policy that may have moved"))
    assert torch.equal(again, taken)


def test_log_probs_of_another_identity_are_replaced(folder: Folder) -> None:
    first, second = torch.zeros(2, 2), torch.ones(2, 2)
    kept(folder, identity({"adapter": "a"}), lambda: first)
    assert torch.equal(kept(folder, identity({"adapter": "b"}), lambda: second), second)
    assert torch.equal(kept(folder, identity({"adapter": "b"}), lambda: first), second)


def test_all_workers_take_when_one_of_them_has_no_file(folder: Folder) -> None:
    stored, taken = torch.zeros(2, 2), torch.ones(2, 2)
    kept(folder, "same", lambda: stored)
    alone = HalfOfTwo(0, 2, ALONE.device, heard=[torch.tensor(0.0)])  # the other one has found nothing
    assert torch.equal(kept(folder, "same", lambda: taken, alone), taken)
    together = HalfOfTwo(1, 2, ALONE.device, heard=[torch.tensor(1.0)])
    assert torch.equal(kept(folder, "same", lambda: stored, together), taken)


def test_only_the_first_worker_writes_the_file(folder: Folder) -> None:
    kept(folder, "same", lambda: torch.zeros(2, 2), HalfOfTwo(1, 2, ALONE.device))
    assert folder.names() == []
