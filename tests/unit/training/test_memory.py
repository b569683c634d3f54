"""Memory: what a step keeps is measured, and computing it twice changes no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import plan_of, random_pairs, random_thumbs, written
from training.lora import layers
from training.memory import (
    activation_bytes_per_token,
    free_bytes,
    has_room_for_merged,
    keep_heap,
    needs_checkpointing,
)
from training.pairs import Pair
from training.policy import Policy
from training.rows import FULL, Item, Layout, lay_out
from training.world import ALONE

EXAMPLES = [*random_pairs(4), *random_thumbs(2)]


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_token_keeps_does_not_depend_on_how_many_there_are(
    architecture: str, layout: Layout, moved_policies: dict[str, Policy]
) -> None:
    policy = moved_policies[architecture]

    def bytes_per_token(copies: int) -> float:
        pairs = [
            Pair(str(n), (10 + n, *range(50, 80)), tuple(range(6, 26)), tuple(range(7, 27))) for n in range(copies)
        ]
        return activation_bytes_per_token(policy, pairs, layout)

    two, eight = bytes_per_token(2), bytes_per_token(8)
    # Of each of the two layers at least its input, and what its seven matrices and its attention need again.
    assert two > 2 * 8 * policy.config.hidden_size * 4
    assert eight == pytest.approx(two, rel=0.1)


def gradients(policy: Policy) -> list[Tensor]:
    policy.base.zero_grad()
    logprobs = policy.logprobs(lay_out([Item(example) for example in EXAMPLES], "shared"))[:, :, FULL]
    (logprobs[:, 0] - 0.5 * logprobs[:, 1]).sum().backward()
    return [parameter.grad.clone() for parameter in policy.trainable if parameter.grad is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_that_are_computed_twice_are_not_kept_and_give_the_same_gradient(
    architecture: str, moved_policy: Callable[[str], Policy]
) -> None:
    policy = moved_policy(architecture)
    kept, expected = activation_bytes_per_token(policy, EXAMPLES, "shared"), gradients(policy)
    policy.checkpoint_gradients()
    assert activation_bytes_per_token(policy, EXAMPLES, "shared") < 0.5 * kept
    assert len(expected) == len(policy.trainable)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(policy), expected, strict=True))


def test_a_policy_that_computes_activations_twice_stays_in_evaluation_mode(
    moved_policy: Callable[[str], Policy],
) -> None:
    policy = moved_policy("llama")
    policy.checkpoint_gradients()
    training = [type(module).__name__ for module in policy.base.modules() if module.training]
    assert set(training) == {"LlamaDecoderLayer", "LlamaModel"} or set(training) == {"LlamaDecoderLayer"}


def test_only_what_would_not_fit_is_computed_twice(tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = plan_of(written(tmp_path_factory.mktemp("examples"), random_pairs(32)))
    assert free_bytes(ALONE.device) > 2**20
    assert not needs_checkpointing(1.0, plan, ALONE.device)
    assert needs_checkpointing(2.0**40, plan, ALONE.device)


def test_a_copy_of_the_matrices_is_kept_where_it_takes_little_of_the_memory(
    moved_policy: Callable[[str], Policy],
) -> None:
    policy = moved_policy("llama")
    assert has_room_for_merged(policy)
    for _, layer in layers(policy.base):
        layer.base_layer.in_features = 2**40
    assert not has_room_for_merged(policy)


def test_a_kept_copy_is_no_activation(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    before = activation_bytes_per_token(policy, EXAMPLES, "shared")
    policy.keep_merged()
    policy.merge()
    assert activation_bytes_per_token(policy, EXAMPLES, "shared") == before


def test_a_process_can_keep_what_it_frees() -> None:
    keep_heap()
    keep_heap()  # and again
