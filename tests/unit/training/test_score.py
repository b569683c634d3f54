"""Log-probs of all examples: each where it belongs, the same on every worker, and never anything but numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.training.conftest import HalfOfTwo, plan_of, random_pairs, random_thumbs, written
from training.errors import NotFinite
from training.pairs import Example
from training.policy import Policy
from training.rows import DISCOUNTED, FULL, Layout
from training.score import score
from training.world import ALONE

EXAMPLES: list[Example] = [*random_pairs(7), *random_thumbs(4, seed=1)]


@pytest.mark.parametrize("layout", ["shared", "dense"])
def test_each_example_has_its_own_log_probs(layout: Layout, moved_policies: dict[str, Policy], tmp_path: Path) -> None:
    policy, examples = moved_policies["llama"], written(tmp_path, EXAMPLES)
    plan = plan_of(examples, layout, per_step=4, token_budget=100)
    found = score(policy, examples, plan, ALONE)
    lent = {thumb: other for step in plan for thumb, other in step.mismatched.items()}
    assert found.shape == (11, 2, 2)
    assert found.dtype == torch.float64
    assert len(lent) == 4
    for number, example in enumerate(EXAMPLES):
        first, second = (
            (example.answer, EXAMPLES[lent[number]].answer) if number in lent else (example.chosen, example.rejected)  # pyright: ignore[reportAttributeAccessIssue]
        )
        own = [policy.own_logprob(example.prompt, answer) for answer in (first, second)]
        assert found[number, :, FULL].tolist() == pytest.approx(own, abs=1e-3)
    assert torch.equal(found[..., FULL], found[..., DISCOUNTED])


def test_a_thumb_without_another_has_a_second_log_prob_of_zero(
    moved_policies: dict[str, Policy], tmp_path: Path
) -> None:
    examples = written(tmp_path, random_thumbs(1))
    found = score(moved_policies["llama"], examples, plan_of(examples), ALONE)
    assert (found[0, 0] < 0).all()
    assert not found[0, 1].any()


def test_nothing_has_no_log_probs(moved_policies: dict[str, Policy], tmp_path: Path) -> None:
    nothing = written(tmp_path, [])
    assert score(moved_policies["llama"], nothing, plan_of(nothing), ALONE).shape == (0, 2, 2)


def test_two_workers_together_score_what_one_does(moved_policies: dict[str, Policy], tmp_path: Path) -> None:
    policy, examples = moved_policies["llama"], written(tmp_path, EXAMPLES)
    plan = plan_of(examples, per_step=16, token_budget=200)
    assert len(plan[0].micro_batches) % 2  # the second worker repeats the first one's, to no effect
    alone = score(policy, examples, plan, ALONE)
    second = HalfOfTwo(1, 2, ALONE.device)
    score(policy, examples, plan, second)
    together = score(policy, examples, plan, HalfOfTwo(0, 2, ALONE.device, heard=second.said))
    assert torch.equal(together, alone)


def test_log_probs_that_are_not_finite_are_never_compared(
    moved_policy: Callable[[str], Policy], tmp_path: Path
) -> None:
    policy, examples = moved_policy("llama"), written(tmp_path, random_pairs(8))
    with torch.no_grad():
        policy.trainable[0].fill_(float("nan"))
    with pytest.raises(NotFinite, match="log-probs of '0000' are not finite"):
        score(policy, examples, plan_of(examples), ALONE)
