"""Which layout of rows a model can be given: the shared one where it is exact, else the dense one, and loudly.

Measured and not believed: the dense layout must give the log-probs of the model's own forward, and the shared one
those of the dense layout. Models whose layers keep a state, or that hand their attention nothing, are found out so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.attention import Unshareable
from training.errors import TrainingError
from training.pairs import Example
from training.policy import Policy
from training.rows import FULL, Item, Layout, lay_out

logger = logging.getLogger(__name__)

# How far two ways to compute one log-prob may be apart, in nats per token of the answer.
_TOLERANCE_NATS_PER_TOKEN = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Choice:
    """The layout, and why it is not the shared one."""

    layout: Layout
    reason: str | None = None


def choose_layout(policy: Policy, examples: Sequence[Example]) -> Choice:
    """The layout for this policy, measured on `examples`: a few that fit into memory together.

    Raises `TrainingError` when not even the dense layout gives the model's own log-probs.
    """
    dense = logprobs_per_token(policy, examples, "dense")
    tolerance = _TOLERANCE_NATS_PER_TOKEN[policy.dtype]
    _require_own_logprobs(policy, examples[0], dense[0], tolerance)
    try:
        difference = (logprobs_per_token(policy, examples, "shared") - dense).abs().max().item()
    except Unshareable as error:
        reason = str(error)
    else:
        if difference <= tolerance:
            return Choice("shared")
        reason = f"log-probs differ by {difference:.1e} nats per token from rows that share nothing"
    logger.warning("each prompt is computed once for each answer, because rows cannot share it: %s", reason)
    return Choice("dense", reason)


@torch.no_grad()
def logprobs_per_token(policy: Policy, examples: Sequence[Example], layout: Layout) -> Tensor:
    """[examples, 2], nats per token."""
    items = [Item(example) for example in examples]
    tokens = torch.tensor([[len(answer or (0,)) for answer in item.answers] for item in items])
    return policy.logprobs(lay_out(items, layout))[:, :, FULL].cpu() / tokens


def _require_own_logprobs(policy: Policy, example: Example, ours: Tensor, tolerance: float) -> None:
    for answer, logprob in zip(Item(example).answers, ours.tolist(), strict=True):
        if answer is None:
            continue
        own = policy.own_logprob(example.prompt, answer) / len(answer)
        if not abs(own - logprob) <= tolerance:
            raise TrainingError(
                f"the model's own log-prob is {own:.6f} nats per token where training computes {logprob:.6f}: "
                "its head does something to the logits that training/logprobs.py does not know"
            )
