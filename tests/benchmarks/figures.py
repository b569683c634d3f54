"""Percentiles, and how benchmarks write them."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; `nan` of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def milliseconds(values: Sequence[float], *shares: float) -> str:
    """Percentiles of seconds, as columns."""
    return "".join(f"  {1000 * percentile(values, share):8.1f}" for share in shares)
