"""What becomes of the pairs of a round that is over: kept as learned, released, or retired. See `store/round_pairs.py`."""

from __future__ import annotations

from service.errors import Conflict
from service.lineage import ancestry
from service.store.round_pairs import Fate
from service.store.store import Store


async def decide(store: Store, n: int, fate: Fate, *, who: str, reason: str | None) -> int:
    """How many pairs it was decided of. Raises `NotFound` and `Conflict`.

    What answers now has learned its pairs: to release those would be to learn them twice.
    """
    if fate == "released":
        stable = (await store.route.read()).stable
        if n in ancestry(stable, await store.adapters.list()):
            raise Conflict(
                f"{stable}, which answers now, has learned the pairs of round {n}. Roll back behind that round first.",
                param="n", code="still_answers",
            )  # fmt: skip
    return await store.round_pairs.decide(n, fate, who=who, reason=reason)
