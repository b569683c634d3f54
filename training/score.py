"""Log-probs of many examples without gradient: the reference before training, the held-out ones before and after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.errors import NotFinite
from training.pairs import Example, Pair
from training.plan import Plan
from training.policy import Policy
from training.rows import items, lay_out
from training.world import World


@torch.no_grad()
def score(policy: Policy, examples: Sequence[Example], plan: Plan, world: World, ld_alpha: float = 1.0) -> Tensor:
    """The policy's log-probs of all examples: float64 [examples, 2, 2] as in `Policy.logprobs`, the same on each worker.

    Raises `NotFinite` naming the first example whose log-probs are not numbers.
    """
    logprobs = torch.zeros(len(examples), 2, 2, dtype=torch.float64, device=policy.device)
    for step in plan:
        for batch, counts in world.share(step.micro_batches):
            found = policy.logprobs(lay_out(items(examples, batch, step.mismatched), plan.layout, ld_alpha))
            if counts:
                logprobs[list(batch)] = found
    world.sum(logprobs)
    broken = (~logprobs.isfinite()).flatten(1).any(1).nonzero()
    if len(broken):
        example = examples[int(broken[0])]
        name = example.pair_id if isinstance(example, Pair) else example.thumb_id
        raise NotFinite(f"the policy's log-probs of {name!r} are not finite")
    return logprobs
