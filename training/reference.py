"""The reference: log-probs of the deployed policy, taken from the policy itself before its first update.

Same weights, same micro-batches, same attention and number format as in training, so at step 0 policy and reference
are equal to the last bit on a CPU. A file beside the round's other files keeps them with the identity of all that
they depend on; a worker that starts again loads them, and never takes them from a policy that has moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from training.errors import ReferenceViolated
from training.files import write_file
from training.world import ALONE, World

_EXACT = 0.0  # nats, on a CPU in float32
_TOLERANCE = 0.05  # nats, where kernels may round differently with and without a gradient
_LOSS_ROUNDING = 1e-12  # the mean of n equal float64 numbers is off by a few units in the last place


def identity(depends_on: Mapping[str, object]) -> str:
    """The sha256 hex digest of everything the reference depends on."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


def kept(path: Path, identity: str, take: Callable[[], Tensor], world: World = ALONE) -> Tensor:
    """The log-probs in the file when they have this identity; else take them and write the file.

    All workers load or all take, because taking needs all of them.
    """
    found = _load(path, identity)
    finders = world.sum(torch.tensor(float(found is not None), device=world.device)).item()
    if found is not None and finders == world.size:
        return found
    logprobs = take()
    if world.is_first:
        write_file(path, save({"logprobs": logprobs.cpu()}, metadata={"identity": identity}))
    return logprobs


def require_equal(policy: Tensor, reference: Tensor, loss: float, expected: float, exact: bool) -> float:
    """Invariant 1, on the examples of the first step and before its update: every log-ratio is 0, and the loss is the
    objective's for a policy that is its reference (ln 2 for DPO).

    `policy` and `reference` are log-probs of one shape, nats. Returns the largest absolute log-ratio; raises
    `ReferenceViolated` naming both.
    """
    log_ratio = (policy - reference).abs().max().item()
    tolerance = _EXACT if exact else _TOLERANCE
    if not (log_ratio <= tolerance and abs(loss - expected) <= tolerance + _LOSS_ROUNDING):
        raise ReferenceViolated(
            f"before the first update the policy is not its own reference: loss {loss:.9f} instead of {expected:.9f}, "
            f"largest |log-ratio| {log_ratio:.3e} nats, tolerance {tolerance:g}"
        )
    return log_ratio


def _load(path: Path, identity: str) -> Tensor | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        same = (file.metadata() or {}).get("identity") == identity
        return file.get_tensor("logprobs") if same else None


def is_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether forward passes with and without gradient give the same bits."""
    return device.type == "cpu" and dtype == torch.float32
