"""The optimiser steps of a round: gradients of the mean loss over each step's pairs, and what to report of them.

A step divides by its number of pairs over all micro-batches and all workers, so neither how pairs are packed nor
how many workers share them changes a gradient. Knows tensors and pairs; knows no file and no Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.contracts import RoundSpec, StepMetrics
from training.errors import NotFinite
from training.losses import PairLosses, dpo_sigmoid
from training.pairs import Pair
from training.plan import Step
from training.policy import Policy
from training.reference import is_exact, require_equal
from training.rows import Layout, lay_out
from training.world import World


class Descent:
    """Moves the policy away from its reference, one step at a time."""

    def __init__(
        self,
        spec: RoundSpec,
        policy: Policy,
        pairs: Sequence[Pair],
        reference: Tensor,  # [pairs, 2]
        layout: Layout,
        world: World,
    ) -> None:
        self._spec, self._policy, self._pairs, self._world = spec, policy, pairs, world
        self._layout: Layout = layout
        self._reference = reference.to(policy.device)
        self._optimizer = torch.optim.AdamW(policy.trainable, lr=spec.learning_rate, weight_decay=0.0)
        self.step0_loss = math.nan
        self.step0_max_abs_logratio = math.nan

    def run(self, schedule: Sequence[Step], report: Callable[[StepMetrics], None]) -> list[StepMetrics]:
        """All steps in order. The first checks invariant 1 before it updates anything.

        Raises `ReferenceViolated`, or `NotFinite` naming the step.
        """
        began, history = time.monotonic(), []
        for number, step in enumerate(schedule, start=1):
            members = [i for batch in step for i in batch]
            logprobs = self.gradients(step, members)
            outcome = dpo_sigmoid(logprobs, self._reference[members], self._spec.beta)
            if number == 1:
                exact = is_exact(self._policy.device, self._spec.dtype)
                self.step0_loss, self.step0_max_abs_logratio = require_equal(
                    logprobs, self._reference[members], outcome, exact
                )
            rate = learning_rate(number, len(schedule), self._spec.learning_rate, self._spec.warmup_ratio)
            norm = self._update(rate, outcome, number)
            seconds = self._first_workers(time.monotonic() - began)
            metrics = _metrics(number, len(schedule), logprobs, outcome, norm, rate, seconds)
            report(metrics)
            history.append(metrics)
        return history

    def gradients(self, step: Step, members: Sequence[int]) -> Tensor:
        """Leaves the gradient of the step's mean loss in the parameters, summed over all workers.

        Returns the policy's log-probs of the members, [pairs of the step, 2], the same on each worker.
        """
        position = {pair: row for row, pair in enumerate(members)}
        logprobs = torch.zeros(len(members), 2, dtype=torch.float64, device=self._policy.device)
        self._optimizer.zero_grad()
        for batch in self._world.share(step):
            rows = lay_out([self._pairs[i] for i in batch], self._layout)
            ours = self._policy.logprobs(rows)
            losses = dpo_sigmoid(ours, self._reference[list(batch)], self._spec.beta).losses
            (losses.sum() / len(members)).backward()
            logprobs[[position[i] for i in batch]] = ours.detach()
        self._sum_gradients()
        return self._world.sum(logprobs)

    def _sum_gradients(self) -> None:
        for parameter in self._policy.trainable:
            if parameter.grad is None:  # this worker has had no micro-batch yet
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._policy.trainable if parameter.grad is not None]
        total = self._world.sum(torch.nn.utils.parameters_to_vector(gradients))
        torch.nn.utils.vector_to_parameters(total, gradients)

    def _update(self, rate: float, outcome: PairLosses, number: int) -> float:
        """One AdamW update with a clipped gradient; returns the norm before clipping."""
        limit = self._spec.max_gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable, limit).item()
        if not (math.isfinite(norm) and bool(outcome.losses.isfinite().all())):
            raise NotFinite(
                f"step {number}: loss {outcome.losses.mean().item()}, gradient norm {norm}; lower the learning rate"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return norm

    def _first_workers(self, seconds: float) -> float:
        """The first worker's clock, so that all workers report the very same metrics."""
        own = seconds if self._world.is_first else 0.0
        return self._world.sum(torch.tensor(own, dtype=torch.float64, device=self._world.device)).item()


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Rate of step 1..`steps`: a linear rise to the peak, then half a cosine that ends just above zero."""
    warmup = math.ceil(warmup_ratio * steps)
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup - 1) / (steps - warmup))) / 2


def _metrics(
    number: int, steps: int, logprobs: Tensor, outcome: PairLosses, norm: float, rate: float, seconds: float
) -> StepMetrics:
    rewards, logps = outcome.rewards.mean(0).tolist(), logprobs.mean(0).tolist()
    return StepMetrics(
        step=number,
        steps=steps,
        loss=outcome.losses.mean().item(),
        rewards_chosen=rewards[0],
        rewards_rejected=rewards[1],
        rewards_margins=outcome.margins.mean().item(),
        rewards_accuracies=outcome.correct.double().mean().item(),
        logps_chosen=logps[0],
        logps_rejected=logps[1],
        grad_norm=norm,
        learning_rate=rate,
        seconds=seconds,
    )
