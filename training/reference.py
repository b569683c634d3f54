"""The reference: log-probs of the deployed policy, taken from the policy itself before its first update.

Same weights, same micro-batches, same attention and number format as in training, so at step 0 policy and reference
are equal to the last bit on a CPU. A file beside the round's other files keeps them with the identity of all that
they depend on; a worker that starts again loads them, and never takes them from a policy that has moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from training.errors import ReferenceViolated
from training.files import safetensors_metadata
from training.folder import Folder
from training.world import ALONE, World

REFERENCE_FILE = "reference.safetensors"  # beside the checkpoints

_EXACT = 0.0  # nats, on a CPU in float32
_TOLERANCE = 0.05  # nats, where kernels may round differently with and without a gradient
_LOSS_ROUNDING = 1e-12  # the mean of n equal float64 numbers is off by a few units in the last place


def identity(depends_on: Mapping[str, object]) -> str:
    """The sha256 hex digest of everything the reference depends on."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()


def kept(folder: Folder, identity: str, take: Callable[[], Tensor], world: World = ALONE) -> Tensor:
    """The log-probs in the folder's file when they have this identity; else take them and write the file.

    All workers load or all take, because taking needs all of them.
    """
    found = _load(folder, identity)
    finders = world.sum(torch.tensor(float(found is not None), device=world.device)).item()
    if found is not None and finders == world.size:
        return found
    logprobs = take()
    if world.is_first:
        folder.write(REFERENCE_FILE, save({"logprobs": logprobs.cpu()}, metadata={"identity": identity}))
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


def _load(folder: Folder, identity: str) -> Tensor | None:
    content = folder.read(REFERENCE_FILE)
    if content is None or safetensors_metadata(content).get("identity") != identity:
        return None
    return load(content)["logprobs"]


def is_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether forward passes with and without gradient give the same bits."""
    return device.type == "cpu" and dtype == torch.float32
