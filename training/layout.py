"""Which layout of rows a model can be given: the shared one where it is exact, else the dense one, and loudly.

First the model's config is asked, then the policy itself: the two layouts must give the same log-probs, and the dense
one those of the model's own forward.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from training.errors import TrainingError
from training.pairs import Pair
from training.policy import Policy
from training.rows import Layout, lay_out

logger = logging.getLogger(__name__)

# How far two ways to compute one log-prob may be apart, in nats per token of the answer.
_TOLERANCE_NATS_PER_TOKEN = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def choose_layout(policy: Policy, pairs: Sequence[Pair]) -> Layout:
    """The layout for this policy, measured on `pairs`: a few that fit into memory together.

    Raises `TrainingError` when not even the dense layout gives the model's own log-probs.
    """
    dense = _logprobs_per_token(policy, pairs, "dense")
    tolerance = _TOLERANCE_NATS_PER_TOKEN[next(policy.model.parameters()).dtype]
    _require_own_logprobs(policy, pairs[0], dense[0], tolerance)
    reason = unshareable(policy.config)
    if reason is None:
        difference = (_logprobs_per_token(policy, pairs, "shared") - dense).abs().max().item()
        if difference <= tolerance:
            return "shared"
        reason = f"log-probs differ by {difference:.1e} nats per token from rows that share nothing"
    logger.warning("each prompt is computed twice, because rows cannot share it: %s", reason)
    return "dense"


def unshareable(config: PretrainedConfig) -> str | None:
    """Why the model's config rules out a shared prompt; None when nothing in it does.

    A sliding window or a recurrent state counts columns, and in a shared row the rejected answer's columns are not
    its positions.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"the model has layers of type {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    if window and not getattr(config, "layer_types", None):
        return f"its attention slides over a window of {window} tokens"
    return None


@torch.no_grad()
def _logprobs_per_token(policy: Policy, pairs: Sequence[Pair], layout: Layout) -> torch.Tensor:
    """[pairs, 2], nats per token."""
    tokens = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    return policy.logprobs(lay_out(pairs, layout)).cpu() / tokens


def _require_own_logprobs(policy: Policy, pair: Pair, ours: torch.Tensor, tolerance: float) -> None:
    for answer, logprob in zip((pair.chosen, pair.rejected), ours.tolist(), strict=True):
        own = policy.own_logprob(pair.prompt, answer) / len(answer)
        if not abs(own - logprob) <= tolerance:
            raise TrainingError(
                f"the model's own log-prob is {own:.6f} nats per token where training computes {logprob:.6f}: "
                "its head does something to the logits that training/logprobs.py does not know"
            )
