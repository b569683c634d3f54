"""A round as evidence: everything that an operator, or whoever asks years later, has to judge it by."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.contracts import Adapter, AuditEntry, Round, RoundEvent
from service.tracing import Trace


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Record):
    """The same question, answered by the adapter before and by the new one."""

    prompt: str
    before: str
    after: str


class RoundEvidence(_Record):
    """`GET /ops/rounds/{n}/report`."""

    made_at: datetime
    round: Round  # with its funnel, training's report, the verdict, behaviour, canary, environment
    stable: str  # who answers when this is made
    adapter: Adapter | None  # None: none was published
    recipe: dict[str, Any] | None  # the manifest's: settings, seed, threads, versions; None: no adapter is left
    timeline: tuple[RoundEvent, ...]  # all but training's steps
    samples: tuple[Sample, ...]
    lineage: Trace
    audit: tuple[AuditEntry, ...]  # of the round and of its adapter, the oldest first
