"""What a round leaves behind: the adapter directory, the curves, scored answers, and the report of its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from training.adapter import Lineage, adapter_name, changed, serialise, write_adapter
from training.contracts import Drift, Evaluation, RoundReport, RoundSpec
from training.evaluate import discordant, evaluate, evaluation_metrics, outcomes
from training.examples import RoundExamples
from training.files import write_file
from training.layout import Choice
from training.memory import peak_bytes
from training.metrics import Loss
from training.outcomes import write_outcomes
from training.policy import Policy
from training.samples import ScoredAnswer, write_samples
from training.steps import Position

Weights = Mapping[str, np.ndarray]

SAMPLES_FILE, OUTCOMES_FILE, CURVES_FILE = "samples.json", "held_out.json", "curves.svg"

# Fields of a spec that say where a round runs and what it leaves, but not what it learns.
NOT_LEARNED_FROM = (
    "attempt", "snapshot", "model", "out", "storage", "checkpoints", "adapter_ordinal", "candidate", "parent",
    "seconds_between_checkpoints", "restarts", "trackers", "node_resource",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Everything a round has found out."""

    before: Weights
    after: Weights
    examples: RoundExamples
    current: Tensor  # [held-out examples, 2, 2]: the deployed policy's log-probs
    candidate: Tensor  # the same of the new one
    drift: Drift | None
    samples: list[ScoredAnswer]
    choice: Choice
    position: Position
    dtype: torch.dtype
    dtype_error: float | None
    gradient_checkpointing: bool
    resumed_from: int | None


def write(spec: RoundSpec, policy: Policy, measured: Measured) -> None:
    """The adapter directory last: once it is there, all else is."""
    out = Path(spec.out)
    if measured.samples:
        write_samples(out / SAMPLES_FILE, measured.samples)
    if measured.examples.held_out.n_pairs:
        write_outcomes(out / OUTCOMES_FILE, outcomes(measured.current, measured.candidate, measured.examples.held_out))
    steps = measured.position.history.steps
    if steps:
        from training.curves import draw  # matplotlib takes a second to load

        current, candidate = _evaluations(measured)
        write_file(out / CURVES_FILE, draw(steps, _evaluation_metrics(spec, measured), current, candidate))
    lineage = Lineage(
        spec.adapter_ordinal, spec.parent, spec.round, spec.fingerprints, spec.pair_digest,
        training=_summary(spec, measured),
    )  # fmt: skip
    write_adapter(out, measured.after, spec.lora, policy.target_modules, spec.model, lineage)


def report(spec: RoundSpec, measured: Measured, seconds: dict[str, float]) -> RoundReport:
    """The numbers, for the gate and for people."""
    digest = hashlib.sha256(serialise(measured.after)).hexdigest()
    out, position, examples = Path(spec.out), measured.position, measured.examples
    return RoundReport(
        adapter_name=adapter_name(spec.adapter_ordinal, digest),
        adapter_directory=str(out / "adapter"),
        adapter_digest=digest,
        pair_digest=spec.pair_digest,
        pairs_trained=examples.train.n_pairs,
        pairs_held_out=examples.held_out.n_pairs,
        pairs_skipped=examples.skipped,
        thumbs_trained=examples.train.n_thumbs,
        thumbs_held_out=examples.held_out.n_thumbs,
        findings=examples.findings,
        objective=spec.objective,
        layout=measured.choice.layout,
        layout_reason=measured.choice.reason,
        dtype=str(measured.dtype).removeprefix("torch."),
        dtype_error=measured.dtype_error,
        gradient_checkpointing=measured.gradient_checkpointing,
        resumed_from=measured.resumed_from,
        step0_loss=position.step0_loss,
        step0_expected_loss=position.step0_expected_loss,
        step0_max_abs_logratio=position.step0_max_abs_logratio,
        nonfinite_steps=0,  # the first one ends the round
        weights_changed=changed(measured.before, measured.after),
        steps=tuple(position.history.steps),
        evaluation=_evaluation_metrics(spec, measured),
        drift=measured.drift,
        samples=str(out / SAMPLES_FILE) if measured.samples else None,
        held_out=str(out / OUTCOMES_FILE) if measured.examples.held_out.n_pairs else None,
        curves=str(out / CURVES_FILE) if position.history.steps else None,
        seconds=seconds,
        peak_bytes=peak_bytes(),
        **_comparison(measured),
    )


def _evaluations(measured: Measured) -> tuple[Evaluation | None, Evaluation | None]:
    held_out = measured.examples.held_out
    if not held_out.n_pairs:
        return None, None
    return evaluate(measured.current, held_out), evaluate(measured.candidate, held_out)


def _comparison(measured: Measured) -> dict[str, Any]:
    """The report's fields about the held-out pairs."""
    current, candidate = _evaluations(measured)
    only_candidate, only_current = discordant(measured.current, measured.candidate, measured.examples.held_out)
    return {
        "current": current,
        "candidate": candidate,
        "candidate_correct_current_wrong": only_candidate,
        "current_correct_candidate_wrong": only_current,
    }


def _evaluation_metrics(spec: RoundSpec, measured: Measured) -> dict[str, float]:
    return evaluation_metrics(measured.candidate, measured.current, measured.examples.held_out, Loss(spec))


def _summary(spec: RoundSpec, measured: Measured) -> dict[str, Any]:
    """The manifest's training report: how to make this adapter again, and what it measured. No clock in it."""
    settings = spec.model_dump(mode="json", exclude={*NOT_LEARNED_FROM, "fingerprints", "lora", "round", "pair_digest"})
    steps = measured.position.history.steps
    clock = {"seconds", "tokens_per_second", "mfu"}
    return settings | {
        "layout": measured.choice.layout,
        "dtype": str(measured.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "pairs_trained": measured.examples.train.n_pairs,
        "thumbs_trained": measured.examples.train.n_thumbs,
        "pairs_held_out": measured.examples.held_out.n_pairs,
        "pairs_skipped": measured.examples.skipped,
        "last_step": steps[-1].model_dump(mode="json", exclude=clock) if steps else None,
        "drift": measured.drift and measured.drift.model_dump(),
        "held_out": {k: v.model_dump() if isinstance(v, Evaluation) else v for k, v in _comparison(measured).items()},
    }


def versions() -> dict[str, str]:
    """Of the libraries whose arithmetic decides the adapter's bytes."""
    return {module.__name__: module.__version__ for module in (torch, transformers)}
