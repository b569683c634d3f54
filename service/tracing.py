"""Lineage both ways: what a vote, pair, round, adapter or completion comes from, and what it has led to.

Along the ring of `store/lineage.py`: a vote leads to pairs, rounds, adapters and what those answered, and it comes from
an answer, the adapter that gave it, the rounds that made that adapter, and the pairs that those have learned.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.errors import NotFound
from service.store.lineage import RING, Kind
from service.store.store import Store

SHOWN = 20  # things of a kind, the newest; how many there are is said of all


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Record):
    """The things of one kind on the way."""

    kind: Kind
    total: int
    shown: tuple[dict[str, Any], ...]  # the newest of them; `id` names each


class Trace(_Record):
    """`GET /ops/lineage/{kind}/{id}`."""

    kind: Kind
    id: str
    found: tuple[dict[str, Any], ...]  # the thing itself; a pair once for each round that took it
    comes_from: tuple[Step, ...]  # the nearest first
    leads_to: tuple[Step, ...]  # the nearest first


async def trace(store: Store, kind: Kind, id: str, shown: int = SHOWN) -> Trace:
    """Raises `NotFound`. Of each kind at most `shown` are named."""
    found = await store.lineage.find(kind, id)
    if not found:
        raise NotFound(f"There is no {kind} '{id}'.", param="id", code=f"{kind}_not_found")

    async def step(to: Kind, forward: bool) -> Step:
        total, rows = await store.lineage.follow(kind, id, to, forward=forward, limit=shown)
        return Step(kind=to, total=total, shown=tuple(dict(row._mapping) for row in rows))

    here = RING.index(kind)
    after: list[Kind] = [RING[(here + i) % len(RING)] for i in range(1, len(RING))]
    return Trace(
        kind=kind,
        id=id,
        found=tuple(dict(row._mapping) for row in found),
        comes_from=tuple([await step(to, False) for to in reversed(after)]),
        leads_to=tuple([await step(to, True) for to in after]),
    )
