"""The optimiser steps of a round: gradients of each step's mean loss, updates, and what to report of them.

A step divides by its number of pairs and of thumbs over all micro-batches and all workers, so neither how examples
are packed nor how many workers share them changes a gradient. Knows tensors and examples; knows no file and no Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.contracts import RoundSpec, StepMetrics
from training.errors import NotFinite
from training.lanes import ONE_LANE, Lanes, share_out
from training.metrics import Facts, History, Loss, Scale, facts, preference_metrics
from training.pairs import Example
from training.plan import MicroBatch, Plan, Step
from training.policy import Policy
from training.reference import is_exact, require_equal
from training.rows import Rows, items, lay_out
from training.speed import training_operations
from training.world import World


@dataclass
class Position:
    """How far the round has come: what a checkpoint keeps beside the weights and the optimiser's moments."""

    done: int = 0  # steps
    seconds: float = 0.0
    num_tokens: int = 0
    step0_loss: float = math.nan
    step0_expected_loss: float = math.nan
    step0_max_abs_logratio: float = math.nan
    history: History = field(default_factory=History)


@dataclass(frozen=True)
class Outcome:
    """A step's forward and backward pass, the same on each worker."""

    policy: Tensor  # float64 [members, 2, 2], as in `Policy.logprobs`
    reference: Tensor  # the same of the reference
    facts: Facts
    scale: Scale
    tokens: int  # that are no padding
    padded_tokens: int
    unshared_tokens: int
    answer_tokens: int


class Descent:
    """Moves the policy away from its reference, one step at a time."""

    def __init__(
        self,
        spec: RoundSpec,
        policy: Policy,
        examples: Sequence[Example],
        reference: Tensor,  # float64 [examples, 2, 2]
        plan: Plan,
        world: World,
        *,
        peak_rate: float,  # floating point operations a second
        lanes: Lanes = ONE_LANE,
    ) -> None:
        self._spec, self._policy, self._examples, self._plan, self._world = spec, policy, examples, plan, world
        self._reference = reference.to(policy.device)
        self._loss = Loss(spec)
        self._peak_rate, self._lanes = peak_rate, lanes
        self.optimizer = torch.optim.AdamW(policy.trainable, lr=spec.learning_rate, weight_decay=0.0)
        self.position = Position()

    @property
    def steps(self) -> int:
        return len(self._plan) * self._spec.epochs

    def run(self, report: Callable[[StepMetrics], None], after_step: Callable[[], None] = lambda: None) -> None:
        """All steps that are still to be made. The very first checks invariant 1 before it updates anything.

        `after_step` is called when `position`, weights and optimiser agree. Raises `ReferenceViolated`, or `NotFinite`
        naming the step.
        """
        position = self.position
        began = time.monotonic() - position.seconds
        for number, index in enumerate(self._plan.schedule(self._spec.epochs), start=1):
            if number <= position.done:
                continue
            outcome = self.gradients(self._plan[index])
            loss = self._loss(outcome.policy, outcome.reference, outcome.facts, outcome.scale).item()
            if number == 1:
                self._check_reference(outcome, loss)
            rate = learning_rate(number, self.steps, self._spec.learning_rate, self._spec.warmup_ratio)
            norm = self._update(rate, loss, number)
            seconds = self._world.from_first(time.monotonic() - began)
            metrics = self._metrics(number, outcome, loss, norm, rate, seconds)
            position.done, position.seconds, position.num_tokens = number, seconds, metrics.num_tokens
            position.history.add(metrics)
            report(metrics)
            after_step()

    def gradients(self, step: Step) -> Outcome:
        """Leaves the gradient of the step's mean loss in the parameters, summed over all workers."""
        self._policy.merge()
        members = step.members
        place = {example: row for row, example in enumerate(members)}
        known = facts(
            [self._examples[i] for i in members], [i in step.mismatched for i in members], self._policy.device
        )
        reference = self._reference[members]
        scale = Scale.of(known, self._baseline_logprobs(step, place) if step.mismatched else reference, reference)
        logprobs = torch.zeros_like(reference)
        counts = torch.zeros(4, dtype=torch.float64, device=self._policy.device)

        def compute(step: Step, batch: MicroBatch) -> tuple[Tensor, tuple[Tensor, ...], Rows]:
            rows, of_batch = self._rows(batch, step), [place[i] for i in batch]
            ours = self._policy.logprobs(rows)
            loss = self._loss(ours, reference[of_batch], known.at(of_batch), scale)
            return ours.detach(), torch.autograd.grad(loss, self._policy.trainable, materialize_grads=True), rows

        self.optimizer.zero_grad()
        for batch, (ours, gradients, rows) in share_out([step], compute, self._world, self._lanes):
            for parameter, gradient in zip(self._policy.trainable, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            logprobs[[place[i] for i in batch]] = ours
            counts += torch.tensor(
                [rows.tokens, rows.input_ids.numel(), rows.unshared_tokens, len(rows.targets)],
                dtype=torch.float64, device=counts.device,
            )  # fmt: skip
        self._sum_gradients()
        totals = (int(count) for count in self._world.sum(counts).tolist())
        return Outcome(self._world.sum(logprobs), reference, known, scale, *totals)

    def _rows(self, batch: Sequence[int], step: Step) -> Rows:
        return lay_out(items(self._examples, batch, step.mismatched), self._plan.layout, self._spec.ld_alpha)

    def _baseline_logprobs(self, step: Step, place: dict[int, int]) -> Tensor:
        """Log-probs of the mismatched answers: KTO's baseline is a mean over the whole step, so it comes first.

        A third branch of the same rows, and the same kernels: before the first update it equals the reference.
        """

        def compute(step: Step, batch: MicroBatch) -> Tensor:
            with torch.no_grad():
                return self._policy.logprobs(self._rows(batch, step))

        logprobs = torch.zeros(len(place), 2, 2, dtype=torch.float64, device=self._policy.device)
        for batch, found in share_out([step], compute, self._world, self._lanes):
            logprobs[[place[i] for i in batch]] = found
        return self._world.sum(logprobs)

    def _sum_gradients(self) -> None:
        if self._world.size == 1:
            return
        # a worker that shares others' company alone has none
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._policy.trainable]
        total = self._world.sum(torch.nn.utils.parameters_to_vector(gradients))
        torch.nn.utils.vector_to_parameters(total, gradients)
        for parameter, gradient in zip(self._policy.trainable, gradients, strict=True):
            parameter.grad = gradient

    def _check_reference(self, outcome: Outcome, loss: float) -> None:
        """Invariant 1, with the first step's log-probs in hand."""
        same = Scale.of(outcome.facts, outcome.reference, outcome.reference)
        expected = self._loss(outcome.reference, outcome.reference, outcome.facts, same).item()
        exact = is_exact(self._policy.device, self._policy.dtype)
        position = self.position
        position.step0_loss, position.step0_expected_loss = loss, expected
        position.step0_max_abs_logratio = require_equal(outcome.policy, outcome.reference, loss, expected, exact)

    def _update(self, rate: float, loss: float, number: int) -> float:
        """One AdamW update with a clipped gradient; returns the norm before clipping."""
        limit = self._spec.max_gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable, limit).item()
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise NotFinite(f"step {number}: loss {loss}, gradient norm {norm}; lower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm

    def _metrics(
        self, number: int, outcome: Outcome, loss: float, norm: float, rate: float, seconds: float
    ) -> StepMetrics:
        took = max(seconds - self.position.seconds, 1e-9)
        needed = training_operations(self._policy, outcome.tokens, outcome.answer_tokens)
        return StepMetrics(
            step=number,
            steps=self.steps,
            epoch=number / len(self._plan),
            loss=loss,
            **preference_metrics(outcome.policy, outcome.reference, outcome.facts, self._spec.beta),  # pyright: ignore
            kl=outcome.scale.baseline.item() if self._loss.objective.unpaired else None,
            grad_norm=norm,
            learning_rate=rate,
            num_tokens=self.position.num_tokens + outcome.tokens,
            tokens_per_second=outcome.tokens / took,
            mfu=needed / took / self._peak_rate / self._world.size,
            padding_fraction=1 - outcome.tokens / outcome.padded_tokens,
            shared_prefix_saving=1 - outcome.tokens / outcome.unshared_tokens,
            seconds=seconds,
        )


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Rate of step 1..`steps`: a linear rise to the peak, then half a cosine that ends just above zero."""
    warmup = math.ceil(warmup_ratio * steps)
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup - 1) / (steps - warmup))) / 2
