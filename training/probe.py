"""Probe: a few fixed answers at which a policy is looked at before and after training.

The hidden states that predict their tokens say how far the candidate has drifted from the deployed policy and from
the base, and what log-prob the candidate gives to each token, which the server is later compared with. Knows the
policy and some examples; each worker computes all of it, because that is little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from training import lora
from training.contracts import Drift
from training.drift import drift, kl_sums
from training.logprobs import token_logprobs
from training.pairs import Example
from training.policy import Policy
from training.rows import Item, Layout, Rows, lay_out
from training.samples import ScoredAnswer

MAX_EXAMPLES = 16
MAX_ANSWER_TOKENS = 1024  # each costs three rows of logits: a fraction of a second, beside rounds of minutes


@dataclass(frozen=True)
class Probe:
    """The examples, one micro-batch each."""

    items: tuple[Item, ...]
    rows: tuple[Rows, ...]

    @torch.no_grad()
    def look(self, policy: Policy) -> list[Tensor]:
        """For each example the hidden states [answer tokens, hidden size]."""
        return [policy.hidden(rows) for rows in self.rows]

    def look_at_base(self, policy: Policy) -> list[Tensor]:
        """The same of the base model, whose weights are the policy's without its update."""
        with lora.without_update(policy.base):
            return self.look(policy)

    def drift(
        self, candidate: list[Tensor], previous: list[Tensor], base: list[Tensor], policy: Policy
    ) -> Drift | None:
        """Mean KL over all answer tokens; None where there are none."""
        if not candidate:
            return None
        sums = [kl_sums(*states, policy.head) for states in zip(candidate, previous, base, strict=True)]
        return drift(torch.stack(sums).sum(0))

    @torch.no_grad()
    def samples(self, candidate: list[Tensor], policy: Policy) -> list[ScoredAnswer]:
        """The first answer of each example, with the log-prob of each of its tokens."""
        scored = []
        for item, rows, hidden in zip(self.items, self.rows, candidate, strict=True):
            answer = item.answers[0]
            logprobs = token_logprobs(hidden, policy.head, rows.targets.to(policy.device))[: len(answer)]
            scored.append(ScoredAnswer(item.example.prompt, answer, tuple(logprobs.tolist())))
        return scored


def probe(examples: Sequence[Example], layout: Layout, at_most: int = MAX_EXAMPLES) -> Probe:
    """One over the first examples, as many as the limits allow."""
    items: list[Item] = []
    tokens = 0
    for example in islice(examples, min(at_most, MAX_EXAMPLES)):
        item = Item(example)
        tokens += sum(len(answer) for answer in item.answers if answer is not None)
        if items and tokens > MAX_ANSWER_TOKENS:
            break
        items.append(item)
    return Probe(tuple(items), tuple(lay_out([item], layout) for item in items))
