"""Checks of what training reported: did it run as it must, did it learn, and how far has it gone? Pure."""

from __future__ import annotations

from service.contracts import Check
from service.gate.settings import GateSettings
from training.contracts import RoundReport

DROP_RATE = "eval_chosen_logp_drop_rate"  # TRL's name of it, in the report's evaluation


def finite(report: RoundReport, settings: GateSettings) -> Check:
    return Check(
        name="finite",
        outcome="pass" if report.nonfinite_steps == 0 and report.steps else "fail",
        value=report.nonfinite_steps,
        bound=0,
        why=f"{report.nonfinite_steps} of {len(report.steps)} steps had a loss or gradient that is not finite",
    )


def step0(report: RoundReport, settings: GateSettings) -> Check:
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


def learned(report: RoundReport, settings: GateSettings) -> Check:
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


def logp_chosen(report: RoundReport, settings: GateSettings) -> Check:
    """DPO may widen the margin by making both answers unlikely (likelihood displacement); the liked one must not go."""
    if report.current is None or report.candidate is None:
        return Check(name="logp_chosen", outcome="abstain", why="there are no held-out pairs")
    before, after = report.current.mean_logp_chosen, report.candidate.mean_logp_chosen
    dropped = report.evaluation.get(DROP_RATE)
    return Check(
        name="logp_chosen",
        outcome="pass" if after - before >= -settings.max_chosen_logp_drop else "fail",
        value=after - before,
        bound=-settings.max_chosen_logp_drop,
        why=f"change of held-out liked answers' log-prob, nats a token: their NLL is {-after:.3f}, it was "
        f"{-before:.3f}" + (f"; {dropped:.0%} became less likely" if dropped is not None else ""),
    )


def kl_previous(report: RoundReport, settings: GateSettings) -> Check:
    value = None if report.drift is None else report.drift.kl_previous
    return _drift("kl_previous", report, value, settings.max_kl_previous, "to the deployed adapter")


def kl_base(report: RoundReport, settings: GateSettings) -> Check:
    """Small steps add up: each round is close to the one before, and all together may be far from the base."""
    value = None if report.drift is None else report.drift.kl_base
    return _drift("kl_base", report, value, settings.max_kl_base, "to the base, the budget of all rounds together")


def _drift(name: str, report: RoundReport, value: float | None, bound: float, to: str) -> Check:
    if report.drift is None or value is None:
        return Check(name=name, outcome="abstain", bound=bound, why="training measured no drift")
    return Check(
        name=name,
        outcome="pass" if value <= bound else "fail",
        value=value,
        bound=bound,
        why=f"mean KL {to}, over {report.drift.tokens} tokens, nats",
    )
