"""How a finding of the data report is made: a number, its two bounds, and the sentence for either side. Pure."""

from __future__ import annotations

from service.report.records import Finding, Severity, Share

FEW = 20  # pairs, votes or answers with fewer of which a share says nothing yet

Bounds = tuple[float, float]  # from the first on somebody should look, from the second on somebody should act


def of_share(name: str, share: Share, bounds: Bounds, *, fine: str, wrong: str, sure: bool = False) -> Finding | None:
    """A share that should be small. With `sure` it must be more than a half by more than chance."""
    if share.share is None or share.total < FEW:
        return None
    look, act = bounds
    by_chance = sure and (share.low is None or share.low <= 0.5)
    if share.share < look or by_chance:
        return finding(name, Severity.OK, fine, share.share, look)
    if share.share < act:
        return finding(name, Severity.LOOK, wrong, share.share, look)
    return finding(name, Severity.ACT, wrong, share.share, act)


def finding(name: str, severity: Severity, says: str, value: float | None, bound: float) -> Finding:
    return Finding(name=name, severity=severity, says=says, value=value, bound=bound)


def rest(share: Share) -> Share:
    return Share.of(share.total - share.count, share.total)


def percent(share: Share) -> str:
    return "none" if share.share is None else f"{share.share:.0%}"
