"""All checks in their order, and what they come to. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from service.contracts import Check, Verdict
from service.gate import behaviour, of_serving, of_training
from service.gate.evidence import Evidence
from service.gate.held_out import held_out
from service.gate.phrases import phrases
from service.gate.regression import suite
from service.gate.settings import GateSettings


def judge(evidence: Evidence, settings: GateSettings) -> Verdict:
    """Before there is a trial, the verdict of the cheap checks alone: what they stop needs none."""
    found = [check.model_copy(update={"needed": settings.needs(_kind(check))}) for check in _checks(evidence, settings)]
    return Verdict(promote=not any(check.stops for check in found), checks=tuple(found))


def summary(verdict: Verdict) -> str:
    """One line for people: why a candidate was turned down, or that it passed."""
    stopped = [f"{check.name}: {check.why}" for check in verdict.checks if check.stops]
    if stopped:
        return "; ".join(stopped)
    passed = sum(check.outcome == "pass" for check in verdict.checks)
    silent = [check.name for check in verdict.checks if check.outcome == "abstain"]
    return f"passed {passed} checks" + (f"; without a word of {', '.join(silent)}" if silent else "")


def _kind(check: Check) -> str:
    """`suite:honesty` is a `suite`."""
    return check.name.split(":")[0]


def _checks(evidence: Evidence, settings: GateSettings) -> Iterator[Check]:
    report, trial = evidence.report, evidence.trial
    yield _integrity(evidence.integrity_fault)
    if trial is not None:
        yield of_serving.loadable(trial)
    if evidence.added_by is not None:
        yield _outside(evidence.added_by)
    else:
        yield from (check(report, settings) for check in (of_training.finite, of_training.step0, of_training.learned))
    yield held_out(report, evidence.held_out, settings)
    of_distance = (of_training.logp_chosen, of_training.kl_previous, of_training.kl_base)
    yield from (check(report, settings) for check in of_distance)
    if trial is None or trial.fault is not None:
        return
    yield from behaviour.checks(trial.current, trial.candidate, settings)
    yield phrases(trial.said, settings)
    yield from (suite(name, items, settings) for name, items in trial.suites.items())
    yield of_serving.win_rate(trial, settings)
    if trial.parity is not None:
        yield of_serving.parity(trial.parity, settings)
    yield of_serving.latency(trial, settings)


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
