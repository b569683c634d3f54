"""Drift: how far a policy's next-token distributions have moved from those of another policy.

One round's reference is the round before, so small steps may add up to a long way from the base model; this measures
both. Knows hidden states and the head that all three policies share; knows no model and no rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from training.contracts import Drift
from training.cost import LOGITS_PER_CHUNK
from training.logprobs import Head


@torch.no_grad()
def hidden_kl(
    candidate_hidden: Tensor, other_hidden: Tensor, head: Head, logits_per_chunk: int = LOGITS_PER_CHUNK
) -> Tensor:
    """KL(candidate || other) over the whole vocabulary at each position, in nats: float64 [tokens].

    Both arguments are [tokens, hidden size], of the same tokens. Kullback and Leibler, 1951:
    `sum over v of p(v) (log p(v) - log q(v))`. At most `logits_per_chunk` logits of both together exist at once.
    """
    chunk = max(1, logits_per_chunk // (2 * head.weight.shape[0]))  # tokens
    divergences = candidate_hidden.new_empty(len(candidate_hidden), dtype=torch.float64)
    for start in range(0, len(candidate_hidden), chunk):
        span = slice(start, start + chunk)
        candidate = head.logits(candidate_hidden[span]).log_softmax(-1)  # float32 [chunk, vocabulary]
        other = head.logits(other_hidden[span]).log_softmax(-1)
        by_token = kl_div(other, candidate, reduction="none", log_target=True)
        divergences[span] = by_token.sum(-1, dtype=torch.float64)
    # No divergence is below zero, but the rounding of a float32 log-softmax can leave one there.
    return divergences.clamp(min=0)


def kl_sums(candidate: Tensor, previous: Tensor, base: Tensor, head: Head) -> Tensor:
    """Number of tokens, their summed KL to the previous policy and to the base: float64 [3].

    The arguments are the three policies' hidden states of the same tokens, [tokens, hidden size]. The results of
    several batches and workers add up.
    """
    to_previous = hidden_kl(candidate, previous, head)
    to_base = to_previous if base is previous else hidden_kl(candidate, base, head)  # the same in a first round
    return torch.stack([to_base.new_tensor(len(candidate)), to_previous.sum(), to_base.sum()])


def drift(sums: Tensor) -> Drift:
    """The mean over all tokens of what `kl_sums` has added up. Raises `ValueError` when there were none."""
    tokens, previous, base = sums.tolist()
    if tokens == 0:
        raise ValueError("there is no drift over no tokens")
    return Drift(tokens=int(tokens), kl_previous=previous / tokens, kl_base=base / tokens)
