"""Rows that share a prompt give the log-probs and gradients of rows that share nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tests.unit.training.conftest import random_pairs
from training.losses import dpo_sigmoid
from training.pairs import Pair
from training.policy import Policy
from training.rows import Layout, lay_out, row_tokens

PAIRS = random_pairs(6)


def gradients(policy: Policy, batches: Sequence[Sequence[Pair]], layout: Layout) -> list[torch.Tensor]:
    """Of the mean loss over all pairs, with a reference of zero."""
    total = sum(len(batch) for batch in batches)
    policy.model.zero_grad()
    for batch in batches:
        logprobs = policy.logprobs(lay_out(batch, layout))
        (dpo_sigmoid(logprobs, torch.zeros_like(logprobs), beta=0.1).losses.sum() / total).backward()
    return [parameter.grad.clone() for parameter in policy.trainable if parameter.grad is not None]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_shared_and_dense_rows_agree(architecture: str, moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy(architecture)
    shared, dense = (policy.logprobs(lay_out(PAIRS, layout)) for layout in ("shared", "dense"))
    torch.testing.assert_close(shared, dense, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        gradients(policy, [PAIRS], "shared"), gradients(policy, [PAIRS], "dense"), rtol=1e-3, atol=1e-6
    )


def test_dense_rows_give_the_models_own_logprobs(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("gemma")
    ours = policy.logprobs(lay_out(PAIRS, "dense"))
    own = [[policy.own_logprob(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)] for pair in PAIRS]
    torch.testing.assert_close(ours, torch.tensor(own, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("architecture", "layout"), [("llama", "shared"), ("qwen3", "shared"), ("gemma", "dense")])
def test_gradients_do_not_depend_on_the_size_of_micro_batches(
    architecture: str, layout: Layout, moved_policy: Callable[[str], Policy]
) -> None:
    policy = moved_policy(architecture)
    one_by_one = gradients(policy, [[pair] for pair in PAIRS], layout)
    four_and_two = gradients(policy, [PAIRS[:4], PAIRS[4:]], layout)
    torch.testing.assert_close(one_by_one, four_and_two, rtol=1e-3, atol=1e-6)


def test_a_rejected_answer_neither_sees_the_chosen_one_nor_counts_its_positions() -> None:
    rows = lay_out([Pair("a", (11, 12), (21, 22, 23), (31, 32)), Pair("b", (11,), (21,), (31,))], "shared")
    assert rows.input_ids[0].tolist() == [11, 12, 21, 22, 23, 31, 32]
    assert rows.position_ids[0].tolist() == [0, 1, 2, 3, 4, 2, 3]
    seen_by_last_rejected = rows.attention_mask[0, 0, 6].tolist()
    assert seen_by_last_rejected == [True, True, False, False, False, True, True]
    assert rows.input_ids[1].tolist() == [11, 21, 31, 0, 0, 0, 0]
    assert not rows.attention_mask[1, 0, :3, 3:].any()  # nothing sees padding


def test_each_answer_token_is_predicted_from_the_position_before_it() -> None:
    pair = Pair("a", (11, 12), (21, 22), (31, 32, 33))
    rows = lay_out([pair], "shared")
    assert rows.sources.tolist() == [1, 2, 1, 4, 5]  # both first tokens from the end of the prompt
    assert rows.targets.tolist() == [21, 22, 31, 32, 33]
    assert rows.owners.tolist() == [0, 0, 1, 1, 1]
    assert row_tokens(pair, "shared") == 7
    assert row_tokens(pair, "dense") == 10
