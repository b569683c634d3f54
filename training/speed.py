"""How fast this device can multiply matrices, and how much of that a step cannot do without: what `mfu` compares."""

from __future__ import annotations

import time

import torch

from training import cost
from training.policy import Policy

_SIDE = 1024  # of the square matrices that are multiplied
_TRIES = 5
_ENOUGH_SECONDS = 1.0  # of trying: bfloat16 without instructions for it takes seconds a product


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of large matrix products, on the threads of this process; the best of a few."""
    side = _SIDE * (4 if device.type == "cuda" else 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    tried_seconds: list[float] = []
    while len(tried_seconds) < _TRIES and sum(tried_seconds) < _ENOUGH_SECONDS:
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        tried_seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(tried_seconds)


def training_operations(policy: Policy, tokens: int, answer_tokens: int) -> float:
    """Floating point operations that no LoRA step over these tokens can avoid: forward, and back to the activations."""
    head = policy.head.weight.numel()
    return cost.training_operations(cost.forward_operations(policy.body_parameters, head, tokens, answer_tokens))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
