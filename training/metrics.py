"""What is worth knowing of some examples under a policy: TRL's metrics and a few more, from log-probs alone.

Of the whole optimiser step or of all held-out examples, over all workers: averages of averages would depend on how
examples are batched. Knows tensors and names; knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.contracts import RoundSpec, StepMetrics
from training.losses import (
    LossSettings,
    PairBatch,
    ThumbBatch,
    kto_baseline,
    pair_losses,
    replay_weights,
    thumb_losses,
)
from training.objective import Objective, parse
from training.pairs import Example, Pair
from training.rows import DISCOUNTED, FULL

MAX_STEPS_KEPT = 512  # in a report


@dataclass(frozen=True)
class Facts:
    """What the objective has to know of examples beside their log-probs; one entry for each of them, in order."""

    is_pair: Tensor  # bool [examples]
    up: Tensor  # bool [examples], of thumbs
    replay: Tensor  # bool [examples]
    mismatched: Tensor  # bool [examples], a thumb that is compared with another one's answer
    lengths: Tensor  # [examples, 2] tokens of first and second answer; a thumb has no second one of its own
    weights: Tensor  # float64 [examples], in the step's mean

    def at(self, indices: list[int]) -> Facts:
        return Facts(**{name: value[indices] for name, value in vars(self).items()})


def facts(examples: list[Example], mismatched: list[bool], device: torch.device) -> Facts:
    """The facts of these examples."""
    lengths = [
        (len(e.chosen), len(e.rejected)) if isinstance(e, Pair) else (len(e.answer), len(e.answer)) for e in examples
    ]
    return Facts(
        torch.tensor([isinstance(e, Pair) for e in examples], device=device),
        torch.tensor([not isinstance(e, Pair) and e.up for e in examples], device=device),
        torch.tensor([e.replay for e in examples], device=device),
        torch.tensor(mismatched, device=device),
        torch.tensor(lengths, device=device),
        torch.tensor([e.weight for e in examples], dtype=torch.float64, device=device),
    )


@dataclass(frozen=True)
class Scale:
    """What one optimiser step divides by, whichever way its examples are shared out, and KTO's baseline for it."""

    pairs: int
    thumbs: int
    tokens_per_chosen: float
    baseline: Tensor  # scalar, nats

    @staticmethod
    def of(facts: Facts, policy: Tensor, reference: Tensor) -> Scale:
        """For a whole step; log-probs are [examples, 2, 2], and only those of mismatched answers are looked at."""
        chosen = facts.lengths[facts.is_pair, 0].double()
        other = facts.mismatched
        baseline = kto_baseline(policy[other, 1, FULL], reference[other, 1, FULL]).to(policy.device)
        return Scale(len(chosen), int((~facts.is_pair).sum()), chosen.mean().item() if len(chosen) else 0.0, baseline)


class Loss:
    """The round's objective as a function of log-probs."""

    def __init__(self, spec: RoundSpec) -> None:
        self.objective: Objective = parse(spec.objective)
        self.settings = LossSettings(
            spec.beta, spec.label_smoothing, spec.desirable_weight, spec.undesirable_weight
        )  # fmt: skip

    def __call__(self, policy: Tensor, reference: Tensor, facts: Facts, scale: Scale) -> Tensor:
        """The examples' share of their step's loss, a scalar; the shares of all its micro-batches add up to it.

        Mean over the step's pairs plus mean over its thumbs. Log-probs are [examples, 2, 2].
        """
        pairs, thumbs = facts.is_pair, ~facts.is_pair
        total = policy.new_zeros(())
        if scale.pairs and self.objective.paired:
            batch = PairBatch(
                policy[pairs, :, DISCOUNTED],
                reference[pairs, :, DISCOUNTED],
                facts.lengths[pairs],
                policy[pairs, 0, FULL],
                scale.tokens_per_chosen,
                self.weights(reference, facts),
            )
            total = total + pair_losses(self.objective.paired, batch, self.settings).sum() / scale.pairs
        if scale.thumbs and self.objective.unpaired:
            single = ThumbBatch(
                policy[thumbs, 0, FULL],
                reference[thumbs, 0, FULL],
                facts.up[thumbs],
                scale.baseline,
                facts.weights[thumbs],
            )
            total = total + thumb_losses(self.objective.unpaired, single, self.settings).sum() / scale.thumbs
        return total

    def weights(self, reference: Tensor, facts: Facts) -> Tensor:
        """[pairs]: each pair's own, and less for replayed pairs that the reference satisfies already."""
        pairs = facts.is_pair
        satisfied = replay_weights(reference[pairs, :, FULL], self.settings.beta)
        return facts.weights[pairs] * torch.where(facts.replay[pairs], satisfied, 1.0)


def preference_metrics(policy: Tensor, reference: Tensor, facts: Facts, beta: float) -> dict[str, float | None]:
    """Fields of `StepMetrics` that log-probs [examples, 2, 2] decide. Of pairs; of thumbs where there are no pairs."""
    pairs = facts.is_pair
    logps = policy[:, :, FULL]
    ratios = (policy - reference)[:, :, DISCOUNTED]
    if pairs.any():
        chosen, rejected = logps[pairs, 0], logps[pairs, 1]
        chosen_ratios, rejected_ratios = ratios[pairs, 0], ratios[pairs, 1]
        lengths = facts.lengths[pairs].double()
        chosen_tokens, rejected_tokens = lengths[:, 0], lengths[:, 1]
        margins = beta * (chosen_ratios - rejected_ratios)
        of_pairs = {
            "rewards_accuracies": _mean(margins > 0),
            "tie_rate": _mean(margins == 0),
            "length_margin": _mean(chosen_tokens - rejected_tokens),
        }
    else:
        up = facts.up
        chosen, rejected = logps[up, 0], logps[~up, 0]
        chosen_ratios, rejected_ratios = ratios[up, 0], ratios[~up, 0]
        chosen_tokens, rejected_tokens = facts.lengths[up, 0].double(), facts.lengths[~up, 0].double()
        of_pairs = {}
    rewards = _mean(beta * chosen_ratios), _mean(beta * rejected_ratios)
    return {
        "rewards_chosen": rewards[0],
        "rewards_rejected": rewards[1],
        "rewards_margins": None if rewards[0] is None or rewards[1] is None else rewards[0] - rewards[1],
        "rewards_accuracies": None,
        "logps_chosen": _mean(chosen),
        "logps_rejected": _mean(rejected),
        "logratio_chosen": _mean(chosen_ratios),
        "logratio_rejected": _mean(rejected_ratios),
        "chosen_logp_drop_rate": _mean(chosen_ratios < 0),
        "nll_chosen": _mean(-chosen / chosen_tokens),
        "length_chosen": _mean(chosen_tokens),
        "length_rejected": _mean(rejected_tokens),
        **of_pairs,
    }


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


class History:
    """The metrics of all steps while they are few; of a long round evenly spaced ones, and always the last."""

    def __init__(self, steps: list[StepMetrics] | None = None) -> None:
        self._kept = list(steps or [])
        self._stride = 1
        while len(self._kept) > 1 and self._kept[-1].step > MAX_STEPS_KEPT * self._stride:
            self._stride *= 2

    def add(self, step: StepMetrics) -> None:
        if self._kept and (self._kept[-1].step - 1) % self._stride:
            self._kept.pop()  # it was kept only for being the last
        self._kept.append(step)
        if len(self._kept) > MAX_STEPS_KEPT:
            self._stride *= 2
            self._kept = [kept for kept in self._kept[:-1] if (kept.step - 1) % self._stride == 0] + [step]

    @property
    def steps(self) -> list[StepMetrics]:
        return list(self._kept)
