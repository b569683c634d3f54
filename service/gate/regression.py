"""Frozen suites: may the candidate have lost what the deployed adapter, or the base, could do? Pure.

Slice by slice, for a whole suite hides a topic that is gone. A slice may lose a share of `suite_tolerance`, and beyond
it what the comparison's own noise explains: the standard error of the difference, from the items on which both differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from service.contracts import Check, Slice
from service.gate.evidence import Graded
from service.gate.settings import GateSettings
from service.gate.statistics import Paired

MIN_ITEMS = 5  # a slice of fewer counts in its suite alone


def suite(name: str, items: Sequence[Graded], settings: GateSettings) -> Check:
    """One check a suite; `value` and `bound` are shares of right answers over all its items."""
    of_current = [(item.slice, item.current, item.candidate) for item in items]
    graded = [(slice, before, after) for slice, before, after in of_current if before is not None and after is not None]
    if not graded:
        why = "none of its items could be graded; those with a rubric need a judge (gate.judge)"
        return Check(name=f"suite:{name}", outcome="abstain", why=why)
    slices = [_slice(topic, both, settings.suite_tolerance) for topic, both in _by_slice(graded)]
    whole = _slice("all", [both[1:] for both in graded], settings.suite_tolerance)
    of_base = [(i.base, i.candidate) for i in items if i.base is not None and i.candidate is not None]
    since_base = _slice("since the base", of_base, settings.suite_budget) if of_base else None
    parts = [whole, *slices, *([since_base] if since_base else [])]
    lost = [
        f"{part.name} ({part.value:.3f} of {part.count}, at least {part.bound:.3f})" for part in parts if _fails(part)
    ]
    why = f"share of right answers to {whole.count} frozen questions"
    left_out = len(items) - len(graded)
    return Check(
        name=f"suite:{name}",
        outcome="fail" if lost else "pass",
        value=whole.value,
        bound=whole.bound,
        why=why + (f"; lost: {', '.join(lost)}" if lost else "") + (f"; {left_out} not graded" if left_out else ""),
        slices=tuple(parts[1:]),
    )


def _fails(part: Slice) -> bool:
    return part.outcome == "fail"


def _by_slice(graded: Sequence[tuple[str, bool, bool]]) -> list[tuple[str, list[tuple[bool, bool]]]]:
    found: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for slice, before, after in graded:
        found[slice].append((before, after))
    return [(slice, both) for slice, both in sorted(found.items()) if len(both) >= MIN_ITEMS]


def _slice(name: str, both: Sequence[tuple[bool, bool]], tolerance: float) -> Slice:
    found = Paired.of([before for before, _ in both], [after for _, after in both])
    bound = max(0.0, found.share_before - tolerance - found.noise)
    return Slice(
        name=name,
        outcome="pass" if found.share >= bound - 1e-12 else "fail",
        count=found.count,
        value=found.share,
        bound=bound,
    )
