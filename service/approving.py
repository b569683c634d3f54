"""Must an operator agree before a candidate that passed the gate answers anybody? Pure."""

from __future__ import annotations

from service.contracts import Round, Verdict
from service.pairs import Funnel, LeftOut
from service.triggers.settings import RoundSettings

NEAR = 0.8  # of the budget to the base


def waits_for(round: Round, verdict: Verdict, settings: RoundSettings) -> str | None:
    """Why an operator is asked; None: nobody is."""
    if settings.approval == "never":
        return None
    flags = "; ".join(_flags(round, verdict, settings))
    if settings.approval == "always":
        return "an operator must approve" + (f": {flags}" if flags else "")
    return f"an operator must approve: {flags}" if flags else None


def _flags(round: Round, verdict: Verdict, settings: RoundSettings) -> list[str]:
    """What a person should look at before many people meet it."""
    flags = []
    if round.candidate is not None:
        flags.append(f"the adapter was brought from outside by {round.requested_by}")
    if round.funnel is not None:
        funnel = Funnel.model_validate(round.funnel)
        held = funnel.left_out.get(LeftOut.QUARANTINED, 0)
        if round.candidate is None and funnel.users < settings.flagged_users:
            flags.append(f"it learned from {funnel.users} users, fewer than {settings.flagged_users}")
        if held:
            flags.append(f"{held} votes are in quarantine")
    for check in verdict.checks:
        if check.name == "phrases" and check.outcome == "abstain" and check.value is not None:
            flags.append(f"new phrases: {check.why}")
        if check.name == "kl_base" and check.value is not None and check.bound and check.value > NEAR * check.bound:
            flags.append(f"{check.value / check.bound:.0%} of the way that it may go from the base")
    return flags
