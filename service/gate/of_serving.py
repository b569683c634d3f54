"""Checks of the candidate where it is to be served: does it load, say what training heard, win, and answer in time? Pure."""

from __future__ import annotations

from service.contracts import Check
from service.gate.evidence import Trial
from service.gate.settings import GateSettings
from service.parity import Parity

FLOAT32_TOLERANCE = 0.01  # nats a token; two float32 implementations are less than 1e-4 apart
BFLOAT16_TOLERANCE = 0.05  # bfloat16 rounds a log-prob by some hundredths


def loadable(trial: Trial) -> Check:
    if trial.fault is not None:
        return Check(name="loadable", outcome="fail", why=trial.fault)
    return Check(name="loadable", outcome="pass", why="a replica has loaded it and answered with it")


def parity(parity: Parity, settings: GateSettings) -> Check:
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


def win_rate(trial: Trial, settings: GateSettings) -> Check:
    """Passes when even the lower end of the interval is a win, fails when even the upper end is none."""
    found, bound = trial.comparison, settings.min_win_rate
    if found is None:
        return Check(name="win_rate", outcome="abstain", bound=bound, why=trial.no_comparison)
    rate = found.win_rate
    return Check(
        name="win_rate",
        outcome="pass" if rate.low >= bound else "fail" if rate.high < bound else "abstain",
        value=rate.low,
        bound=bound,
        why=f"lower end of the win rate at equal lengths, {rate.mean:.3f} ({rate.low:.3f} to {rate.high:.3f}) over "
        f"{found.prompts} prompts; {found.plain.mean:.3f} whatever the lengths, {found.ties:.0%} ties, the judge was "
        f"swayed by the order in {found.swayed:.0%}",
    )


def latency(trial: Trial, settings: GateSettings) -> Check:
    found, bound = trial.latency, settings.max_latency_ratio
    if found is None or found.current == 0:
        return Check(name="latency", outcome="abstain", bound=bound, why="nobody was asked, so nothing was timed")
    ratio = found.candidate / found.current
    return Check(
        name="latency",
        outcome="pass" if ratio <= bound else "fail",
        value=ratio,
        bound=bound,
        why=f"median seconds a token, {found.candidate:.4f}, to the deployed adapter's {found.current:.4f}",
    )
