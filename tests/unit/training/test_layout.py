"""A prompt is shared only where that is exact; elsewhere it is computed twice, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from tests.unit.training.conftest import random_pairs
from training.errors import TrainingError
from training.layout import choose_layout, unshareable
from training.logprobs import Head
from training.policy import Policy

PAIRS = random_pairs(4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_full_attention_shares_its_prompts(
    architecture: str, moved_policy: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_layout(moved_policy(architecture), PAIRS) == "shared"
    assert caplog.records == []


def test_sliding_windows_fall_back_and_say_so(
    moved_policy: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_layout(moved_policy("gemma"), PAIRS) == "dense"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "sliding_attention" in record.getMessage()


def test_a_model_that_only_measurement_finds_out_falls_back_too(
    moved_policy: Callable[[str], Policy], caplog: pytest.LogCaptureFixture
) -> None:
    policy = moved_policy("llama")

    def ignore_mask(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = None  # plain causal attention: the rejected answer sees the chosen one
        return args, kwargs

    decoder = policy.model.get_submodule("base_model.model.model")
    decoder.register_forward_pre_hook(ignore_mask, with_kwargs=True)
    assert choose_layout(policy, PAIRS) == "dense"
    assert "log-probs differ by" in caplog.text


def test_a_head_that_is_not_understood_fails_the_round(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    policy.head = Head(policy.head.weight, scale=0.5)
    with pytest.raises(TrainingError, match="does something to the logits"):
        choose_layout(policy, PAIRS)


@pytest.mark.parametrize(
    ("config", "shareable"),
    [
        (LlamaConfig(), True),
        (Qwen3Config(use_sliding_window=False), True),
        (Qwen3Config(use_sliding_window=True, max_window_layers=0), False),
    ],
)
def test_what_the_config_says(config: LlamaConfig | Qwen3Config, shareable: bool) -> None:
    assert (unshareable(config) is None) is shareable
