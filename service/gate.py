"""Numbers in, verdict out: may this candidate replace the deployed adapter? Pure.

Fifth of the seven files of a thumbs-up: `training/round.py` measured, `service/registry.py` publishes what passes.
Every check passes, fails or abstains; anything but all passes keeps the old adapter (invariant 6).
"""

from __future__ import annotations

from collections.abc import Callable

from service.contracts import Check, Verdict
from service.parity import Parity
from service.settings import GateSettings
from training.contracts import RoundReport

FLOAT32_TOLERANCE = 0.01  # nats a token; two float32 implementations are less than 1e-4 apart
BFLOAT16_TOLERANCE = 0.05  # bfloat16 rounds a log-prob by some hundredths


def judge(
    report: RoundReport,
    integrity_fault: str | None,
    settings: GateSettings,
    *,
    added_by: str | None = None,
    parity: Parity | None = None,
) -> Verdict:
    """`integrity_fault`: why the adapter directory cannot be served, or None. Cheap checks first.

    `added_by`: who brought the candidate from outside; None: it was trained here. `parity` is None where training left
    no samples to compare with, and while nothing is compared yet.
    """
    of_training = (_outside(added_by),) if added_by is not None else tuple(c(report, settings) for c in OF_TRAINING)
    checks = (
        _integrity(integrity_fault),
        *of_training,
        _held_out(report, settings),
        *((_parity(parity, settings),) if parity is not None else ()),
    )
    return Verdict(promote=all(check.outcome == "pass" for check in checks), checks=checks)


def summary(verdict: Verdict) -> str:
    """One line for people: why a candidate was turned down, or that it passed."""
    stopped = [f"{check.name}: {check.why}" for check in verdict.checks if check.outcome != "pass"]
    return "; ".join(stopped) if stopped else f"passed {len(verdict.checks)} checks"


def _integrity(fault: str | None) -> Check:
    if fault is not None:
        return Check(name="integrity", outcome="fail", why=fault)
    return Check(name="integrity", outcome="pass", why="every file hashes to its manifest and can be served")


def _outside(added_by: str) -> Check:
    return Check(
        name="outside",
        outcome="pass",
        why=f"brought from outside by {added_by}: how it was trained is not known here, only how it answers is judged",
    )


def _finite(report: RoundReport, settings: GateSettings) -> Check:
    return Check(
        name="finite",
        outcome="pass" if report.nonfinite_steps == 0 and report.steps else "fail",
        value=report.nonfinite_steps,
        bound=0,
        why=f"{report.nonfinite_steps} of {len(report.steps)} steps had a loss or gradient that is not finite",
    )


def _step0(report: RoundReport, settings: GateSettings) -> Check:
    """Invariant 1: before any update the policy is its own reference, so the loss is known: ln 2 for DPO."""
    expected = report.step0_expected_loss
    off = max(report.step0_max_abs_logratio, abs(report.step0_loss - expected))
    return Check(
        name="step0",
        outcome="pass" if off <= settings.step0_tolerance else "fail",
        value=off,
        bound=settings.step0_tolerance,
        why=f"largest |log-ratio| to the reference, or distance of the loss from {expected:.4f}, before any update",
    )


def _learned(report: RoundReport, settings: GateSettings) -> Check:
    """A round that changed nothing is no round: its margin over the reference must have grown."""
    tail = report.steps[-max(1, len(report.steps) // 4) :]
    margins = [step.rewards_margins for step in tail if step.rewards_margins is not None]
    if tail and not margins:
        why = "the last quarter of the steps had no liked and disliked answers together, so there is no margin"
        return Check(name="learned", outcome="abstain", bound=settings.min_final_margin, why=why)
    margin = sum(margins) / len(margins) if margins else 0.0
    moved = report.weights_changed and margin >= settings.min_final_margin
    return Check(
        name="learned",
        outcome="pass" if moved else "fail",
        value=margin,
        bound=settings.min_final_margin,
        why="mean reward margin of the last quarter of the steps"
        if report.weights_changed
        else "the weights did not change",
    )


def _held_out(report: RoundReport, settings: GateSettings) -> Check:
    """Preference accuracy on pairs that were not trained on, candidate against the deployed adapter, same pairs."""
    current, candidate = report.current, report.candidate
    if current is None or candidate is None or candidate.pairs < settings.min_held_out_pairs:
        pairs = candidate.pairs if candidate is not None else 0
        return Check(
            name="held_out",
            outcome="abstain",
            value=pairs,
            bound=settings.min_held_out_pairs,
            why=f"{pairs} held-out pairs cannot decide; {settings.min_held_out_pairs} are needed",
        )
    return Check(
        name="held_out",
        outcome="pass" if candidate.accuracy >= current.accuracy else "fail",
        value=candidate.accuracy,
        bound=current.accuracy,
        why=f"preference accuracy on {candidate.pairs} held-out pairs, against the deployed adapter's",
    )


def _parity(parity: Parity, settings: GateSettings) -> Check:
    """What was measured in training holds for what is served: the same log-probs of the same answers."""
    float32 = parity.training_dtype == parity.serving_dtype == "float32"
    bound = settings.parity_tolerance or (FLOAT32_TOLERANCE if float32 else BFLOAT16_TOLERANCE)
    if parity.tokens == 0:
        return Check(name="parity", outcome="abstain", bound=bound, why="no token was scored on both sides")
    if parity.mean_abs is None:
        return Check(name="parity", outcome="fail", bound=bound, why="serving's or training's log-probs are not finite")
    return Check(
        name="parity",
        outcome="pass" if parity.mean_abs <= bound else "fail",
        value=parity.mean_abs,
        bound=bound,
        why=f"mean distance of serving's log-probs from training's over {parity.tokens} tokens, nats",
    )


OF_TRAINING: tuple[Callable[[RoundReport, GateSettings], Check], ...] = (_finite, _step0, _learned)
