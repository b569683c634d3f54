"""Held-out pairs: how often, and by how much, a policy prefers the answer that people preferred. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.contracts import Evaluation
from training.pairs import Pair


def evaluate(logprobs: Tensor, pairs: Sequence[Pair]) -> Evaluation:
    """A policy's log-probs [pairs, 2] of the held-out pairs, summed up."""
    margins = logprobs[:, 0] - logprobs[:, 1]
    chosen_tokens = torch.tensor([len(pair.chosen) for pair in pairs], device=logprobs.device)
    return Evaluation(
        pairs=len(pairs),
        accuracy=(margins > 0).double().mean().item(),
        mean_margin=margins.mean().item(),
        mean_logp_chosen=(logprobs[:, 0] / chosen_tokens).mean().item(),
    )


def discordant(current: Tensor, candidate: Tensor) -> tuple[int, int]:
    """How many pairs only the candidate gets right, and how many only the current policy; both are [pairs, 2].

    The two counts are what McNemar's paired test needs.
    """
    current_right, candidate_right = current[:, 0] > current[:, 1], candidate[:, 0] > candidate[:, 1]
    only_candidate = (candidate_right & ~current_right).sum().item()
    only_current = (current_right & ~candidate_right).sum().item()
    return int(only_candidate), int(only_current)
