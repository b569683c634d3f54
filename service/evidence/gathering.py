"""Puts together what is known of a round: from the store, and from the manifest of the adapter that it made."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from service.contracts import Adapter, Round
from service.depot import read
from service.errors import Conflict
from service.evidence.records import RoundEvidence, Sample
from service.store.store import Store
from service.tracing import trace
from serving.adapters import MANIFEST

STEP = "step"  # the kind of an event that the report's own steps tell of


async def of_round(store: Store, n: int) -> RoundEvidence:
    """Raises `NotFound`. Of a round that runs it is what is known so far."""
    round = await store.rounds.get(n)
    adapter = None if round.adapter is None else await store.adapters.get(round.adapter)
    subjects = [f"round {n}"] + ([] if adapter is None else [adapter.name])
    return RoundEvidence(
        made_at=datetime.now(UTC),
        round=round,
        stable=(await store.route.read()).stable,
        adapter=adapter,
        recipe=await asyncio.to_thread(_recipe, round, adapter),
        timeline=tuple(event for event in await store.rounds.events(n) if event.kind != STEP),
        samples=tuple(Sample.model_validate(sample) for sample in (round.behaviour or {}).get("samples", ())),
        lineage=await trace(store, "round", str(n)),
        audit=await store.audit.about(*subjects),
    )


async def of_adapter(store: Store, name: str) -> RoundEvidence:
    """The round that made the adapter, or judged one from outside. Raises `NotFound`, and `Conflict` for none."""
    adapter = await store.adapters.get(name)
    if adapter.round is None:
        raise Conflict(f"No round has made or judged {name}, so nothing is known of it.", param="name", code="no_round")
    return await of_round(store, adapter.round)


def _recipe(round: Round, adapter: Adapter | None) -> dict[str, Any] | None:
    if adapter is not None and adapter.deleted_at is None:
        directory = adapter.directory
    elif round.report is not None:
        directory = round.report["adapter_directory"]
    else:
        return None
    try:
        return json.loads(read(f"{directory}/{MANIFEST}"))["training"]
    except (OSError, ValueError):
        return None
