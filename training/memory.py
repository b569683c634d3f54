"""Memory: what a step is going to need, and what this process does with what it has had."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Sequence

import psutil
import torch

from training.cost import USABLE_SHARE
from training.pairs import Example
from training.plan import Plan
from training.policy import Policy
from training.rows import Item, Layout, lay_out

_MERGED_SHARE = 0.1  # of the free memory that a second copy of the base's matrices may take
_STEPS_LOOKED_AT = 64  # for the largest micro-batch of a plan

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 2**30


def keep_heap() -> None:
    """Let the C library keep what a step frees, for the next step to use again.

    It returns large blocks to the system by default and gets them back page by page, which costs a step some percent.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            if hasattr(libc, "mallopt"):  # musl has none
                libc.mallopt(option, ctypes.c_int(_KEPT_BYTES))


def activation_bytes_per_token(policy: Policy, examples: Sequence[Example], layout: Layout) -> float:
    """What the backward pass keeps of each token of the forward pass, measured on a few examples."""
    rows = lay_out([Item(example) for example in examples], layout)
    kept: dict[int, torch.UntypedStorage] = {}  # by identity: layers share some of what they keep
    frozen = {tensor.untyped_storage()._cdata for tensor in (*policy.base.parameters(), *policy.base.buffers())}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in frozen:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs = policy.logprobs(rows)
    # Counted at the end: of a sharded base the matrices that were gathered are empty again.
    kept_bytes = sum(storage.nbytes() for storage in kept.values())
    del logprobs
    return kept_bytes / rows.input_ids.numel()


def free_bytes(device: torch.device) -> int:
    """What could be allocated on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_bytes() -> int:
    """What this process has needed at most: of the GPU's memory if it uses one, else of the machine's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024


def has_room_for_merged(policy: Policy) -> bool:
    """Whether a second copy of the base's matrices, with the update added, takes little of what is free."""
    return 4 * policy.body_parameters <= _MERGED_SHARE * free_bytes(policy.device)


def needs_checkpointing(bytes_per_token: float, plan: Plan, device: torch.device, at_once: int = 1) -> bool:
    """Whether the activations of so many of the largest micro-batch would not fit, and must be computed twice."""
    looked_at = range(0, len(plan), max(1, len(plan) // _STEPS_LOOKED_AT))
    steps = (plan[number] for number in looked_at)
    tokens = max(plan.tokens(step, batch) for step in steps for batch in step.micro_batches)
    return at_once * tokens * bytes_per_token > USABLE_SHARE * free_bytes(device)
