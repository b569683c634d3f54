"""Held-out pairs: how often, and by how much, a policy prefers the answer that people preferred. Numbers only.

Log-probs are [examples, 2, 2] as in `Policy.logprobs`, of pairs and thumbs; only the pairs count here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.contracts import Evaluation, trl_name
from training.examples import Examples
from training.metrics import Facts, Loss, Scale, preference_metrics
from training.outcomes import Outcome
from training.pairs import Pair
from training.rows import FULL


def evaluate(logprobs: Tensor, examples: Examples) -> Evaluation:
    """A policy's log-probs of the held-out pairs, summed up."""
    pairs = _pairs(logprobs, examples)  # [pairs, 2]
    margins = pairs[:, 0] - pairs[:, 1]
    chosen_tokens = torch.from_numpy(examples.lengths[examples.is_pair, 1].astype(np.float64))
    return Evaluation(
        pairs=len(pairs),
        accuracy=(margins > 0).double().mean().item(),
        mean_margin=margins.mean().item(),
        mean_logp_chosen=(pairs[:, 0] / chosen_tokens).mean().item(),
    )


def discordant(current: Tensor, candidate: Tensor, examples: Examples) -> tuple[int, int]:
    """How many pairs only the candidate gets right, and how many only the current policy.

    The two counts are what McNemar's paired test needs.
    """
    current, candidate = _pairs(current, examples), _pairs(candidate, examples)
    current_right, candidate_right = current[:, 0] > current[:, 1], candidate[:, 0] > candidate[:, 1]
    only_candidate = (candidate_right & ~current_right).sum().item()
    only_current = (current_right & ~candidate_right).sum().item()
    return int(only_candidate), int(only_current)


def outcomes(current: Tensor, candidate: Tensor, examples: Examples) -> list[Outcome]:
    """How both stand on each pair, in the order of the examples."""
    margins = [
        (pairs[:, 0] - pairs[:, 1]).tolist() for pairs in (_pairs(current, examples), _pairs(candidate, examples))
    ]
    ids = [example.pair_id for example in examples if isinstance(example, Pair)]
    return [Outcome(*found) for found in zip(ids, *margins, strict=True)]


def evaluation_metrics(candidate: Tensor, current: Tensor, examples: Examples, loss: Loss) -> dict[str, float]:
    """TRL's metrics of all held-out examples, under its `eval_...` names; the current policy is the reference."""
    if not len(examples):
        return {}
    candidate, current = candidate.cpu(), current.cpu()
    lengths = torch.from_numpy(examples.lengths[:, 1:].astype(np.int64))
    is_pair = torch.from_numpy(np.array(examples.is_pair))
    up = ~is_pair & (lengths[:, 0] > 0)
    of_thumb = lengths.amax(1, keepdim=True).expand(-1, 2)
    mismatched = ~is_pair & (current[:, 1, FULL] != 0)  # an absent answer has 0
    lengths = torch.where(is_pair[:, None], lengths, of_thumb)
    # What is measured counts in full: weights and replay are for learning.
    in_full = torch.ones(len(examples), dtype=torch.float64)
    known = Facts(is_pair, up, torch.zeros_like(up), mismatched, lengths, in_full)
    found = preference_metrics(candidate, current, known, loss.settings.beta)
    found["loss"] = loss(candidate, current, known, Scale.of(known, candidate, current)).item()
    return {f"eval_{trl_name(name)}": value for name, value in found.items() if value is not None}


def _pairs(logprobs: Tensor, examples: Examples) -> Tensor:
    """[pairs, 2]: chosen, rejected."""
    return logprobs[:, :, FULL].cpu()[torch.from_numpy(np.array(examples.is_pair))]
