"""What operators send and what is kept: keys, rounds, adapters. Imports no torch, no vLLM, no Ray.

Votes are in `votes.py`, pairs in `pairs.py`. Wire bodies refuse unknown fields by name.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.limiting.settings import NO_LIMITS, LimitSettings
from service.parity import Parity
from service.tuning import Tuning
from serving.contracts import AdapterFiles


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Role(enum.StrEnum):
    """What a key may do."""

    APP = "app"  # chat and vote
    OPERATOR = "operator"  # rounds, adapters, preferences, rollback
    METRICS = "metrics"  # GET /metrics and nothing else


class Key(_Contract):
    """A caller that has shown a valid key. `app` names the application (or the operator) it was issued to."""

    id: str
    role: Role
    app: str
    limits: LimitSettings = NO_LIMITS  # of this key; where it has none those of the settings hold


# --- rounds -------------------------------------------------------------------------------------------


class RoundState(enum.StrEnum):
    """Where a round is. The diagram with its lettered edges is in service/README.md."""

    QUEUED = "queued"  # asked for; nothing done yet
    COLLECTING = "collecting"  # new pairs are chosen and frozen into a snapshot
    TRAINING = "training"  # an attempt runs on Ray Train
    JUDGING = "judging"  # the gate reads the report; a passing candidate is published
    AWAITING_APPROVAL = "awaiting_approval"  # passed, and an operator must say yes
    CANARY = "canary"  # answers a share of the users, a larger one step by step
    PROMOTED = "promoted"  # final: its adapter answers
    REJECTED = "rejected"  # final: the gate, an operator or the canary said no; a result, not an error
    FAILED = "failed"  # final: something broke; the reason says what
    CANCELLED = "cancelled"  # final: an operator said stop

    @property
    def final(self) -> bool:
        return self in (self.PROMOTED, self.REJECTED, self.FAILED, self.CANCELLED)


class RoundBody(_Contract, Tuning):
    """`POST /ops/rounds`. Everything is optional; unset training values come from the settings."""

    dry_run: bool = False
    note: str | None = Field(default=None, max_length=1000)


Outcome = Literal["pass", "fail", "abstain"]


class Slice(_Contract):
    """A part of what a check looked at, such as one topic of a suite, or the newest of the pairs."""

    name: str
    outcome: Outcome
    count: int
    value: float | None = None
    bound: float | None = None


class DecisionBody(_Contract):
    """`POST /ops/rounds/{n}/approve` and `/reject`; `POST /ops/pause` and `/resume`."""

    reason: str | None = Field(default=None, max_length=1000)


class Pause(_Contract):
    """No round starts by itself. What is asked for by hand still does, and what runs goes on."""

    who: str
    reason: str | None
    at: datetime


class Check(_Contract):
    """One check of the gate. `value` and `bound` are None where the check has no number."""

    name: str
    outcome: Outcome
    value: float | None = None
    bound: float | None = None
    why: str
    needed: bool = True  # False: where it abstains it stops nobody
    slices: tuple[Slice, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether it keeps the old adapter."""
        return self.outcome == "fail" or (self.outcome == "abstain" and self.needed)


class Verdict(_Contract):
    """What the gate says of a candidate. Any failure, and any needed abstention, keeps the old adapter (invariant 6)."""

    promote: bool
    checks: tuple[Check, ...]


class Candidate(_Contract):
    """An adapter that was brought from outside; its round measures and judges it, and trains nothing."""

    directory: str
    weights_sha256: str
    name: str | None  # as its own manifest names it; None: it came without one
    parent: str | None  # the adapter it continues, as its own manifest says
    assumed_base: bool  # nothing says what it was trained on: its bringer vouched for the served base


class Round(_Contract):
    """A round as the operator sees it."""

    n: int
    state: RoundState
    reason: str | None = None  # why it ended as it did, or what it waits for
    note: str | None = None
    requested_by: str
    settings: dict[str, Any]  # all of `service/tuning.py`, as they will be used
    candidate: Candidate | None = None  # None: the round trains one itself
    parent: str | None = None  # the adapter that was deployed when it collected; None: not collected yet
    attempt: int = 0
    pair_digest: str | None = None
    pairs: int | None = None
    adapter: str | None = None  # the published adapter; None: none was published
    funnel: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    parity: Parity | None = None  # None: not compared
    verdict: Verdict | None = None
    behaviour: dict[str, Any] | None = None  # what was measured on answers of the candidate; None: not measured
    canary: dict[str, Any] | None = None  # where the canary is and what it has seen; None: there was none
    watch: dict[str, Any] | None = None  # what was seen since its adapter answers everybody
    environment: dict[str, Any] | None = None  # code, packages and machine that it ran with
    approved_by: str | None = None
    pairs_fate: Literal["learned", "released", "retired"] = "learned"  # released: a later round may use them again
    created_at: datetime
    updated_at: datetime


class RoundEvent(_Contract):
    """A line of `/ops/rounds/{n}/events`. Kinds: state, attempt, phase, step, canary, swap, watch."""

    seq: int
    at: datetime
    kind: str
    data: dict[str, Any]


# --- adapters and route -------------------------------------------------------------------------------


class Adapter(_Contract):
    """A published adapter: immutable, named by its ordinal and its weights' digest."""

    name: str
    ordinal: int
    parent: str  # the adapter it continues, or "base"
    round: int | None  # that trained or, where it was added, judged it
    added_by: str | None = None  # who brought it from outside; None: a round trained it here
    weights_sha256: str
    manifest_sha256: str
    directory: str
    pair_digest: str | None
    verdict: Verdict | None
    created_at: datetime
    deleted_at: datetime | None = None  # its files are gone, and it can answer no more; None: they are kept

    @property
    def files(self) -> AdapterFiles:
        return AdapterFiles(name=self.name, directory=self.directory, manifest_sha256=self.manifest_sha256)


class PromoteBody(_Contract):
    expected_current: str | None = None  # refuse with 412 when another adapter is stable by now
    reason: str | None = Field(default=None, max_length=1000)


class RollbackBody(_Contract):
    to: str | None = None  # None: the previous adapter
    expected_current: str | None = None  # refuse with 412 when another adapter is stable by now
    reason: str | None = Field(default=None, max_length=1000)


class SplitBody(_Contract):
    """`PUT /ops/split`: shares of the requests to `policy`. What is left out stays; a place set to null is emptied."""

    candidate: str | None = None
    candidate_share: float = Field(default=0.0, ge=0, le=1)
    baseline: str | None = None
    baseline_share: float = Field(default=0.0, ge=0, le=1)
    expected_generation: int | None = None  # refuse with 412 when the route has changed since
    reason: str | None = Field(default=None, max_length=1000)


class AuditEntry(_Contract):
    """Who changed what is served, when and why."""

    seq: int
    at: datetime
    who: str
    action: str
    subject: str
    detail: dict[str, Any]
    digest: str  # covers the entry before: service/store/audit_chain.py
