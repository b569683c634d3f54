"""Log-probs of many examples without gradient: the reference before training, the held-out ones before and after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.errors import NotFinite
from training.lanes import ONE_LANE, Lanes, share_out
from training.pairs import Example, Pair
from training.plan import MicroBatch, Plan, Step
from training.policy import Policy
from training.rows import items, lay_out
from training.world import World


def score(
    policy: Policy,
    examples: Sequence[Example],
    plan: Plan,
    world: World,
    ld_alpha: float = 1.0,
    lanes: Lanes = ONE_LANE,
) -> Tensor:
    """The policy's log-probs of all examples: float64 [examples, 2, 2] as in `Policy.logprobs`, the same on each worker.

    Raises `NotFinite` naming the first example whose log-probs are not numbers.
    """

    def compute(step: Step, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return policy.logprobs(lay_out(items(examples, batch, step.mismatched), plan.layout, ld_alpha))

    policy.merge()
    logprobs = torch.zeros(len(examples), 2, 2, dtype=torch.float64, device=policy.device)
    for batch, found in share_out(plan, compute, world, lanes):
        logprobs[list(batch)] = found
    world.sum(logprobs)
    broken = (~logprobs.isfinite()).flatten(1).any(1).nonzero()
    if len(broken):
        example = examples[int(broken[0])]
        name = example.pair_id if isinstance(example, Pair) else example.thumb_id
        raise NotFinite(f"the policy's log-probs of {name!r} are not finite")
    return logprobs
