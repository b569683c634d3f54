"""Which pairs say nearly what others say, in question and answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.curation.likeness import Shelf
from service.pairs import Pair

BOUND = 0.8  # likeness from which two pairs are look-alikes; guards leave out from `preferences.near_duplicate` on


def repeated(pairs: Sequence[Pair]) -> int:
    """How many of the pairs are much like one that stands before them: without those as much would be said."""
    signed = [pair for pair in pairs if pair.signature]
    if not signed:
        return 0
    shelf, found = _shelf(signed), 0
    for row in range(len(signed)):
        found += shelf.like(row) is not None
        shelf.put(row)
    return found


def known(pairs: Sequence[Pair], among: Sequence[Pair]) -> int:
    """How many of the pairs are much like one of the others."""
    asked, others = ([pair for pair in side if pair.signature] for side in (pairs, among))
    if not asked or not others:
        return 0
    shelf = _shelf([*others, *asked])
    for row in range(len(others)):
        shelf.put(row)
    return sum(shelf.like(row) is not None for row in range(len(others), len(others) + len(asked)))


def _shelf(pairs: Sequence[Pair]) -> Shelf:
    return Shelf(np.array([pair.signature for pair in pairs], dtype=np.int64), BOUND)
