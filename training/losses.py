"""The losses, from log-probs alone: pure tensor functions that know no model, batch layout or optimiser.

A log-prob is the sum over an answer's tokens, in nats; a log-ratio is the policy's log-prob minus the reference's.
Column 0 of a pair is the chosen answer, column 1 the rejected one. Float64 in and out, so that a policy that equals
its reference has a DPO loss of exactly ln 2. The names that people write are `objective.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.objective import Term


@dataclass(frozen=True)
class PairBatch:
    """Answers of which people preferred one to the other."""

    policy: Tensor  # [pairs, 2] log-probs, nats; the longer answer's tail discounted where ld_alpha < 1
    reference: Tensor  # [pairs, 2] the same of the reference
    lengths: Tensor  # [pairs, 2] tokens
    chosen_logps: Tensor  # [pairs] the policy's log-prob of the whole chosen answer, never discounted
    tokens_per_chosen: float  # mean length of chosen answers over the whole optimiser step, of which this is a part
    weights: Tensor  # [pairs] of each pair in the step's mean: its own, times `replay_weights` where it is replayed

    @property
    def log_ratios(self) -> Tensor:
        """[pairs, 2], nats."""
        return self.policy - self.reference


@dataclass(frozen=True)
class ThumbBatch:
    """Single answers that people liked or did not."""

    policy: Tensor  # [thumbs] log-probs, nats
    reference: Tensor  # [thumbs] the same of the reference
    up: Tensor  # [thumbs] bool
    baseline: Tensor  # scalar: `kto_baseline`, nats, detached
    weights: Tensor  # [thumbs] of each thumb in the step's mean

    @property
    def log_ratios(self) -> Tensor:
        """[thumbs], nats."""
        return self.policy - self.reference


@dataclass(frozen=True)
class LossSettings:
    """What the losses are parametrised by; `RoundSpec` explains and bounds each."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def pair_losses(terms: Sequence[Term], batch: PairBatch, settings: LossSettings) -> Tensor:
    """The weighted sum of the terms for each pair, times the pair's own weight: [pairs]."""
    total = torch.zeros_like(batch.weights)
    for term in terms:
        total = total + term.weight * PAIR_LOSSES[term.loss](batch, settings)
    return batch.weights * total


def thumb_losses(terms: Sequence[Term], batch: ThumbBatch, settings: LossSettings) -> Tensor:
    """The weighted sum of the terms for each thumb, times the thumb's own weight: [thumbs]."""
    total = torch.zeros_like(batch.policy)
    for term in terms:
        total = total + term.weight * THUMB_LOSSES[term.loss](batch, settings)
    return batch.weights * total


def dpo_sigmoid(batch: PairBatch, settings: LossSettings) -> Tensor:
    """Direct preference optimisation: `-log sigmoid(beta * d)`, d = log-ratio chosen - log-ratio rejected.

    Rafailov et al., 2023, arXiv:2305.18290, equation 7.
    """
    return -logsigmoid(settings.beta * _difference(batch.log_ratios))


def cdpo(batch: PairBatch, settings: LossSettings) -> Tensor:
    """Conservative DPO: `-(1 - e) log sigmoid(beta * d) - e log sigmoid(-beta * d)`, e = label smoothing.

    The cross-entropy to a vote that is wrong with probability e: it is least where the policy prefers the chosen
    answer with probability 1 - e, and no margin beyond that pays. Mitchell, 2023, ericmitchell.ai/cdpo.pdf.
    """
    margins, e = settings.beta * _difference(batch.log_ratios), settings.label_smoothing
    return -(1 - e) * logsigmoid(margins) - e * logsigmoid(-margins)


def robust(batch: PairBatch, settings: LossSettings) -> Tensor:
    """Robust DPO: `(-(1 - e) log sigmoid(beta * d) + e log sigmoid(-beta * d)) / (1 - 2e)`, e = label smoothing.

    Its expectation over votes of which a share e is flipped is the DPO loss of the true votes; so a single one may
    be below zero. Raises `ValueError` for e of a half or more, where votes say nothing. Chowdhury et al., 2024,
    arXiv:2403.00409.
    """
    margins, e = settings.beta * _difference(batch.log_ratios), settings.label_smoothing
    if e >= 0.5:
        raise ValueError(f"label_smoothing {e} is not below 0.5: no loss can be robust to votes that are mostly wrong")
    return (-(1 - e) * logsigmoid(margins) + e * logsigmoid(-margins)) / (1 - 2 * e)


def hinge(batch: PairBatch, settings: LossSettings) -> Tensor:
    """SLiC's hinge on the DPO margin: `max(0, 1 - beta * d)`. Zhao et al., 2023, arXiv:2305.10425."""
    return torch.relu(1 - settings.beta * _difference(batch.log_ratios))


def ipo(batch: PairBatch, settings: LossSettings) -> Tensor:
    """IPO with log-ratios per token: `(log-ratio chosen / length - log-ratio rejected / length - 1 / (2 beta))^2`.

    TRL's form of Azar et al., 2023, arXiv:2310.12036, equation 17.
    """
    return (_difference(batch.log_ratios / batch.lengths) - 1 / (2 * settings.beta)) ** 2


def ipo_sum(batch: PairBatch, settings: LossSettings) -> Tensor:
    """IPO with log-ratios of whole answers: `(d - 1 / (2 beta))^2`.

    Azar et al., 2023, arXiv:2310.12036, equation 17.
    """
    return (_difference(batch.log_ratios) - 1 / (2 * settings.beta)) ** 2


def sigmoid_norm(batch: PairBatch, settings: LossSettings) -> Tensor:
    """DPO per token: `-log sigmoid(beta * (log-ratio chosen / length - log-ratio rejected / length))`.

    Wants a larger beta than DPO, about 5. Lambert et al., 2024 (Tulu 3), arXiv:2411.15124.
    """
    return -logsigmoid(settings.beta * _difference(batch.log_ratios / batch.lengths))


def nll(batch: PairBatch, settings: LossSettings) -> Tensor:
    """Negative log-likelihood of the chosen answer per token: `-log p(chosen) / length`, each pair weighing the same.

    Beside DPO this is RPO, which keeps chosen answers likely: Pang et al., 2024, arXiv:2404.19733.
    """
    return -batch.chosen_logps / batch.lengths[:, 0]


def nll_tokens(batch: PairBatch, settings: LossSettings) -> Tensor:
    """The same with each token weighing the same: `-log p(chosen) / mean length of the step's chosen answers`.

    Its mean over the step is `-sum of log-probs / sum of lengths`, however the step is cut into batches.
    """
    return -batch.chosen_logps / batch.tokens_per_chosen


def kto(batch: ThumbBatch, settings: LossSettings) -> Tensor:
    """KTO: `w (1 - sigmoid(beta * (log-ratio - z0)))` for a thumb up, `w (1 - sigmoid(beta * (z0 - log-ratio)))` for
    one down.

    z0 is the batch's baseline, and w the desirable or the undesirable weight. Ethayarajh et al., 2024,
    arXiv:2402.01306.
    """
    return _prospect(batch.log_ratios - batch.baseline, batch, settings)


def apo_zero_unpaired(batch: ThumbBatch, settings: LossSettings) -> Tensor:
    """APO-zero for single thumbs: `w (1 - sigmoid(beta * log-ratio))` for a thumb up, `w sigmoid(beta * log-ratio)`
    for one down.

    KTO with z0 = 0: liked answers become more likely and others less, in absolute terms. D'Oosterlinck et al., 2024,
    arXiv:2408.06266.
    """
    return _prospect(batch.log_ratios, batch, settings)


def kto_baseline(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's z0: `max(0, mean log-ratio)` of answers to other prompts than their own, as a detached scalar; 0 for none.

    It estimates KL(policy || reference), which is never below zero. Both arguments are [mismatched answers] of the
    whole optimiser step: the maximum is taken after the mean over all workers.
    """
    if len(policy) == 0:
        return policy.new_zeros(())
    return (policy - reference).mean().clamp(min=0).detach()


def replay_weights(reference: Tensor, beta: float) -> Tensor:
    """How much a replayed pair still counts: `min(1, 2 sigmoid(-beta * (log p(chosen) - log p(rejected))))`.

    `reference` is [pairs, 2]; the result [pairs]. Each round takes margins from its own reference, so a pair that is
    replayed counts as undecided every time and is pushed apart again and again, until answers lose their variety
    (COPR, Zhang et al., 2025, aclanthology.org/2025.findings-acl.281). It therefore counts in full only while the
    reference does not prefer the chosen answer; beyond that the weight falls as the gradient of DPO falls with the
    margin, as if the pair had been learned against a reference that is undecided about it.
    """
    return (2 * torch.sigmoid(-beta * _difference(reference))).clamp(max=1)


def _difference(of_answers: Tensor) -> Tensor:
    """[pairs, 2] -> [pairs]: chosen minus rejected."""
    return of_answers[:, 0] - of_answers[:, 1]


def _prospect(gains: Tensor, batch: ThumbBatch, settings: LossSettings) -> Tensor:
    """Kahneman and Tversky's value function as a loss: [thumbs] log-ratios above the baseline -> [thumbs]."""
    wanted = torch.where(batch.up, gains, -gains)
    # of two plain numbers `where` would make a float32
    weights = torch.where(batch.up, gains.new_tensor(settings.desirable_weight), settings.undesirable_weight)
    return weights * torch.sigmoid(-settings.beta * wanted)  # 1 - sigmoid(x) without its rounding


PairLoss = Callable[[PairBatch, LossSettings], Tensor]
ThumbLoss = Callable[[ThumbBatch, LossSettings], Tensor]

PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": dpo_sigmoid,
    "cdpo": cdpo,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "sigmoid_norm": sigmoid_norm,
    "nll": nll,
    "nll_tokens": nll_tokens,
}
THUMB_LOSSES: dict[str, ThumbLoss] = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}
