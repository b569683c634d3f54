"""The loss, from log-probs alone: pure tensor functions that know no model, batch or optimiser.

Rows are pairs; column 0 is the chosen answer, column 1 the rejected one. A log-prob is the sum over the answer's
tokens, in nats. Float64 in, so that a policy that equals its reference has a loss of exactly ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairLosses:
    """What one batch of pairs costs, and the figures people read beside it."""

    losses: Tensor  # [pairs]
    rewards: Tensor  # [pairs, 2], beta * log-ratio to the reference, detached

    @property
    def margins(self) -> Tensor:
        """[pairs]: reward of the chosen answer minus reward of the rejected one."""
        return self.rewards[:, 0] - self.rewards[:, 1]

    @property
    def correct(self) -> Tensor:
        """[pairs]: whether the chosen answer gained more than the rejected one; a tie is not correct."""
        return self.margins > 0


def dpo_sigmoid(policy_logps: Tensor, reference_logps: Tensor, beta: float) -> PairLosses:
    """Direct preference optimisation, `-log sigmoid(beta * (log-ratio chosen - log-ratio rejected))`.

    Both arguments are [pairs, 2]. Rafailov et al., 2023, arXiv:2305.18290, equation 7.
    """
    log_ratios = policy_logps - reference_logps  # [pairs, 2]
    losses = -torch.nn.functional.logsigmoid(beta * (log_ratios[:, 0] - log_ratios[:, 1]))
    return PairLosses(losses, (beta * log_ratios).detach())
