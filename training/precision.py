"""The number format of the frozen base model: what was asked for, or the faster one where that is safe to say.

A GPU multiplies bfloat16 many times faster. A CPU does so only with instructions of its own, and not always then, so
it is measured. What bfloat16 costs in accuracy is measured too, and reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.contracts import RoundSpec
from training.layout import logprobs_per_token
from training.pairs import Example
from training.policy import Policy
from training.speed import matrix_product_rate

_WORTH_IT = 1.3  # times as fast


def choose_dtype(spec: RoundSpec, device: torch.device) -> torch.dtype:
    """The format in which the base model is loaded."""
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether this CPU has instructions for bfloat16 and they pay."""
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    rates = {dtype: matrix_product_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    return rates[torch.bfloat16] > _WORTH_IT * rates[torch.float32]


def to_bfloat16(policy: Policy, examples: Sequence[Example]) -> float:
    """Round the base model's weights; returns the largest change of a log-prob, in nats per token of the answer."""
    before = logprobs_per_token(policy, examples, "dense")
    policy.to_bfloat16()
    return (logprobs_per_token(policy, examples, "dense") - before).abs().max().item()
