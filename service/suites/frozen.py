"""Questions that no round may learn from: a policy that was taught the exam shows nothing by passing it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from service.curation.likeness import signature
from service.suites.items import Suite


def frozen(suites: Iterable[Suite]) -> frozenset[tuple[int, ...]]:
    """The signatures of all their questions, as pairs carry them: equal where the words are, in any case and spacing."""
    return frozenset(signature(item.question) for suite in suites for item in suite.items)
