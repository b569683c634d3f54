"""What crosses the border of `serving`: routes, adapters, records and the two ports a replica needs.

Imports neither vLLM nor Ray. `serving/replica.py` implements the behaviour, `serving/engine.py` implements
`Engine`, and the composition root hands in a `Journal` that writes to the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, Self

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


OnEnded = Callable[[EngineOutput], Awaitable[None]]
OnSampled = Callable[[], None]


def unseen() -> None:
    """For `OnSampled`, where nobody waits for the first token."""


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


class Engine(Protocol):
    """Generates text. Knows adapters by name, nothing of routes, keys or records."""

    tokenizer_fingerprint: str
    base_fingerprint: str
    adapter_capacity: int  # how many adapters may be loaded at once
    dtype: str  # in which it computes, such as float32
    control_tokens: frozenset[str]  # texts that the tokenizer reads as one token of control, such as <|im_end|>
    context_tokens: int  # prompt and answer together

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        """Answer an OpenAI chat body whose `model` is `base` or a loaded adapter.

        `on_ended` is awaited once: of a finished answer before the client can see its end, of a cancelled one as soon as
        the engine has let go of it; not at all for a body that is refused. `on_sampled` is called when the first token
        has come, and of a stream whenever more have. A stream that is closed, or a call that is cancelled, stops the
        engine's work on it. Raises `serving.errors.RequestRefused` for a body the engine will not take.
        """
        ...

    async def stop(self, request_id: str) -> None:
        """Stop the engine's work on that request. Its call or stream then ends by itself, with an answer that is worth
        nothing, after `on_ended` with what was sampled so far. A request that is over already is left alone."""
        ...

    async def load(self, name: str, directory: str) -> None:
        """Put the adapter into the engine; raises `AdapterRefused`, and then nothing has changed."""
        ...

    async def warm_up(self, name: str) -> None:
        """Generate one token with the adapter, or the base, so that the first user does not wait for it."""
        ...

    async def score(self, name: str, answer: Answer) -> tuple[float, ...]:
        """log p(token | all before it) of each of the answer's tokens under a loaded adapter, in nats.

        Nothing is sampled and no cached prefix is read. Tokens that do not fit the context are left out.
        """
        ...

    async def unload(self, name: str) -> None:
        """Free the adapter's place. Only for an adapter that no request uses."""
        ...

    async def check_health(self) -> None:
        """Raises when the engine is dead."""
        ...

    def shutdown(self) -> None: ...


class Journal(Protocol):
    """The store, as a replica sees it."""

    async def route(self) -> Route: ...

    async def adapter(self, name: str) -> AdapterFiles | None:
        """None: no such adapter was ever published, or its files were deleted."""
        ...

    async def published(self) -> frozenset[str]:
        """The names of all adapters that were published and whose files are kept."""
        ...

    async def ready(self) -> None:
        """Raises where an answer that cannot be recorded must not even be begun."""
        ...

    async def record(self, completion: Completion) -> bool:
        """True: it is durable. False: it may not be, and the answer goes out all the same. Raises where it must not."""
        ...

    async def lease(self, replica: str, adapters: frozenset[str], seconds: float) -> None:
        """Say which published adapters this replica needs for so long: their files are not deleted meanwhile."""
        ...

    async def close(self) -> None: ...


class Edge(Protocol):
    """What the composition root plugs into a replica's process: the way to the store and the HTTP face."""

    def journal(self) -> Journal: ...

    def http(self, replica: Any, journal: Any) -> Any:
        """The ASGI application that answers for `replica` (a `serving.replica.Replica`)."""
        ...
