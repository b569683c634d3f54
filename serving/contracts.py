"""What crosses the border of `serving`: routes, adapters, records. Imports neither vLLM nor Ray.

What a replica needs of others is in `serving/ports.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BASE = "base"  # the model without any adapter; also a value that a route may name
ROUTED = "policy"  # the alias that follows the route
TRUNCATED = "length"  # finish_reason of a completion that ran into its token limit


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Outcome = Literal["finished", "cancelled", "failed"]  # cancelled: its client went away, or its time was up
Share = Field(default=0.0, ge=0, le=1)  # of the requests that leave the choice to the route


class Route(_Contract):
    """Who answers. The row in the store is the truth; a replica holds one immutable copy of it."""

    generation: int = 0  # grows by one with every change
    stable: str = BASE
    previous: str | None = None  # what a rollback returns to; stays loaded. None: nothing was promoted yet
    candidate: str | None = None  # None: no canary
    candidate_share: float = Share
    baseline: str | None = None  # stays the same over many rounds: what has drifted is measured against it
    baseline_share: float = Share

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.candidate_share + self.baseline_share > 1:
            raise ValueError("candidate_share and baseline_share together are more than all of the traffic")
        if (self.candidate_share and self.candidate is None) or (self.baseline_share and self.baseline is None):
            raise ValueError("a share of the traffic needs an adapter that answers it")
        return self

    def wanted(self) -> frozenset[str]:
        """The adapters every replica must hold in its engine, the base left out."""
        named = (self.stable, self.previous, self.candidate, self.baseline)
        return frozenset(name for name in named if name and name != BASE)

    def alias(self, model: str) -> str | None:
        """The adapter an alias names now; None where `model` is no alias or its place is empty."""
        return {
            ROUTED: self.stable,
            "policy@stable": self.stable,
            "policy@previous": self.previous,
            "policy@candidate": self.candidate,
            BASE: BASE,
        }.get(model)


class AdapterFiles(_Contract):
    """Where a published adapter lies and what its manifest must hash to."""

    name: str
    directory: str
    manifest_sha256: str


class Choice(_Contract):
    """One sampled answer, as the engine produced it."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # ends in EOS only where the engine stopped on it
    finish_reason: str  # stop, length; cancelled: the engine was stopped here


class Completion(_Contract):
    """The record of one request that reached the engine: one completion, one adapter (invariant 3)."""

    id: str
    app: str
    adapter: str
    model: str  # as requested: an alias or a full name
    created_at: datetime
    user: str | None
    metadata: dict[str, str]
    store: bool  # False: the caller asked that no text is kept
    messages: list[dict[str, Any]]
    sampling: dict[str, Any]
    tokenizer_fingerprint: str
    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]  # of a cancelled one what was sampled so far; of a failed one none
    outcome: Outcome = "finished"  # anything else is kept for measuring and is never paired
    first_token_seconds: float | None = None  # from the request's arrival; None: there was none
    seconds: float | None = None  # until its last token


class Prepared(_Contract):
    """A replica's answer to `prepare`."""

    replica: str
    adapter: str
    seconds: float
    error: str | None = None  # None: verified, loaded, warmed up


class Probed(_Contract):
    """A replica's answer to `probe`."""

    replica: str
    seconds: float  # until the engine gave one token, or failed
    error: str | None = None  # None: it did


class Exposed(_Contract):
    """What one replica counts."""

    replica: str
    text: str  # in Prometheus' text format


class Answer(_Contract):
    """An answer whose tokens are known: what a policy is asked to score."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


class Scores(_Contract):
    """One replica's log-probs of given answers under one adapter. Tokens that did not fit its context are left out."""

    replica: str
    dtype: str  # in which the engine computes, such as float32
    logprobs: tuple[tuple[float, ...], ...]  # of each answer, of each of its tokens; nats


class Ask(_Contract):
    """A chat on trial: nobody waits for the answer, nothing of it is recorded, and nobody can vote on it."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = 0


class Said(_Contract):
    """The answer to an `Ask`."""

    text: str
    tokens: int
    finish_reason: str  # as in `Choice`; refused: the engine did not take the chat, such as one that is too long
    seconds: float


class Sampled(_Contract):
    """What one replica said under one adapter, in the order it was asked."""

    replica: str
    answers: tuple[Said, ...]


class ReplicaStatus(_Contract):
    """A replica's answer to `flip` and `status`."""

    replica: str
    generation: int
    stable: str
    wanted: tuple[str, ...]  # what the route row names, as far as this replica knows
    loaded: tuple[str, ...]
    in_flight: dict[str, int]  # adapter -> requests pinned to it
    waiting: int = 0  # requests that wait for a place in the engine
    error: str | None = None  # why it lags behind the route; None: it does not
    unlogged: int = 0  # answers since its start that could not be recorded, and so cannot be rated


class Roll(_Contract):
    """All replicas that run: the answers of those that answer, and of each other one why it does not."""

    answered: tuple[ReplicaStatus, ...]
    silent: tuple[str, ...] = ()


def _unheard(tokens: int) -> None:
    """Nobody counts them."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the app is from the key, the rest from the request."""

    app: str
    ended: Callable[[int], None] = _unheard  # called once, when the request is over: the tokens that it took


@dataclass(frozen=True)
class EngineOutput:
    """What the engine sampled for one request: complete, or as far as it came before it was stopped."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    outcome: Outcome = "finished"


@dataclass(frozen=True)
class ChatAnswer:
    """An answer in OpenAI's shape: either a whole body or a stream of server-sent events."""

    completion_id: str
    adapter: str
    body: dict[str, Any] | None = None
    stream: AsyncIterator[str] | None = field(default=None, compare=False)
    rateable: bool = True  # of a body: its record is durable. A stream says so itself, in its last chunk


@dataclass(frozen=True)
class Base:
    """Which base model a directory holds: sha256 of its weights with their configuration, and of what renders messages."""

    model: str
    tokenizer: str
