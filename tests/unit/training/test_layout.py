"""A prompt is shared only where that is exact; elsewhere it is computed once for each answer, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import random_pairs, random_thumbs
from training.errors import TrainingError
from training.layout import Choice, choose_layout
from training.logprobs import Head
from training.policy import Policy

EXAMPLES = [*random_pairs(3), *random_thumbs(1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_are_shared_whatever_the_layers_windows(
    architecture: str, moved_policies: dict[str, Policy], caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_layout(moved_policies[architecture], EXAMPLES) == Choice("shared")
    assert caplog.records == []


def change_what_layers_are_told(policy: Policy, change: Callable[[dict[str, Any]], None]) -> None:
    """Make the decoder another kind of model, that calls its attention otherwise."""

    def changed(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        change(kwargs)
        return args, kwargs

    for name, module in policy.base.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(changed, with_kwargs=True)


def test_a_model_that_hands_its_attention_nothing_falls_back_and_says_so(
    moved_policy: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    policy = moved_policy("llama")
    change_what_layers_are_told(policy, lambda kwargs: kwargs.pop("packing", None))
    choice = choose_layout(policy, EXAMPLES)
    assert choice.layout == "dense"
    assert "does not hand its attention" in (choice.reason or "")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert choice.reason is not None
    assert choice.reason in record.getMessage()


def test_a_model_that_only_measurement_finds_out_falls_back_too(
    moved_policy: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    policy = moved_policy("llama")

    def remember_the_row(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.01 * output.cumsum(dim=1)  # a state that goes through siblings and documents

    policy.base.get_submodule("model.layers.0.mlp").register_forward_hook(remember_the_row)
    choice = choose_layout(policy, EXAMPLES)
    assert choice.layout == "dense"
    assert "log-probs differ by" in (choice.reason or "")
    assert "log-probs differ by" in caplog.text


def test_capped_scores_fall_back_to_the_models_own_attention(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("gemma")
    change_what_layers_are_told(policy, lambda kwargs: kwargs.update(softcap=50.0))
    choice = choose_layout(policy, EXAMPLES)
    assert (choice.layout, "scale and mask" in (choice.reason or "")) == ("dense", True)


def test_a_head_that_is_not_understood_fails_the_round(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    policy.head = Head(policy.head.weight, scale=0.5)
    with pytest.raises(TrainingError, match="does something to the logits"):
        choose_layout(policy, EXAMPLES)


def test_log_probs_that_are_no_numbers_fail_the_round(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    with torch.no_grad():
        policy.trainable[0].fill_(float("nan"))
    with pytest.raises(TrainingError, match="nan nats per token"):
        choose_layout(policy, EXAMPLES)


def test_bfloat16_is_given_its_rounding(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    policy.to_bfloat16()
    assert choose_layout(policy, EXAMPLES).layout == "shared"
