"""What crosses the border of `serving`: routes, adapters, records and the two ports a replica needs.

Imports neither vLLM nor Ray. `serving/replica.py` implements the behaviour, `serving/engine.py` implements
`Engine`, and the composition root hands in a `Journal` that writes to the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

BASE = "base"  # the model without any adapter; also a value that a route may name
ROUTED = "policy"  # the alias that follows the route
TRUNCATED = "length"  # finish_reason of a completion that ran into its token limit


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Route(_Contract):
    """Who answers. The row in the store is the truth; a replica holds one immutable copy of it."""

    generation: int = 0  # grows by one with every change
    stable: str = BASE
    previous: str | None = None  # what a rollback returns to; stays loaded. None: nothing was promoted yet
    candidate: str | None = None  # None: no canary

    def wanted(self) -> frozenset[str]:
        """The adapters every replica must hold in its engine, the base left out."""
        return frozenset(n for n in (self.stable, self.previous, self.candidate) if n and n != BASE)

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
    finish_reason: str  # stop, length


class Completion(_Contract):
    """The record of one answered request: one completion, one adapter (invariant 3)."""

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
    choices: tuple[Choice, ...]


class Prepared(_Contract):
    """A replica's answer to `prepare`."""

    replica: str
    adapter: str
    seconds: float
    error: str | None = None  # None: verified, loaded, warmed up


class Answer(_Contract):
    """An answer whose tokens are known: what a policy is asked to score."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


class Scores(_Contract):
    """One replica's log-probs of given answers under one adapter. Tokens that did not fit its context are left out."""

    replica: str
    dtype: str  # in which the engine computes, such as float32
    logprobs: tuple[tuple[float, ...], ...]  # of each answer, of each of its tokens; nats


class ReplicaStatus(_Contract):
    """A replica's answer to `flip` and `status`."""

    replica: str
    generation: int
    stable: str
    loaded: tuple[str, ...]
    in_flight: dict[str, int]  # adapter -> requests pinned to it
    error: str | None = None  # why it lags behind the route; None: it does not
    unlogged: int = 0  # answers since its start that could not be recorded, and so cannot be rated


@dataclass(frozen=True)
class Caller:
    """Who asks: the app is from the key, the rest from the request."""

    app: str


@dataclass(frozen=True)
class EngineOutput:
    """What the engine sampled for one request, complete."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]


OnFinished = Callable[[EngineOutput], Awaitable[None]]


@dataclass(frozen=True)
class ChatAnswer:
    """An answer in OpenAI's shape: either a whole body or a stream of server-sent events."""

    completion_id: str
    adapter: str
    body: dict[str, Any] | None = None
    stream: AsyncIterator[str] | None = field(default=None, compare=False)
    rateable: bool = True  # of a body: its record is durable. A stream says so itself, in its last chunk


class Engine(Protocol):
    """Generates text. Knows adapters by name, nothing of routes, keys or records."""

    tokenizer_fingerprint: str
    base_fingerprint: str
    adapter_capacity: int  # how many adapters may be loaded at once
    dtype: str  # in which it computes, such as float32

    async def chat(self, request: dict[str, Any], request_id: str, on_finished: OnFinished) -> ChatAnswer:
        """Answer an OpenAI chat body whose `model` is `base` or a loaded adapter.

        `on_finished` is awaited once, before the client can see the end of the answer.
        Raises `serving.errors.RequestRefused` for a body the engine will not take.
        """
        ...

    async def load(self, name: str, directory: str) -> None:
        """Put the adapter into the engine; raises `AdapterRefused`, and then nothing has changed."""
        ...

    async def warm_up(self, name: str) -> None:
        """Generate one token with the adapter, so that the first user does not wait for it."""
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
        """None: no such adapter was ever published."""
        ...

    async def ready(self) -> None:
        """Raises where an answer that cannot be recorded must not even be begun."""
        ...

    async def record(self, completion: Completion) -> bool:
        """True: it is durable. False: it may not be, and the answer goes out all the same. Raises where it must not."""
        ...

    async def close(self) -> None: ...


class Edge(Protocol):
    """What the composition root plugs into a replica's process: the way to the store and the HTTP face."""

    def journal(self) -> Journal: ...

    def http(self, replica: Any, journal: Any) -> Any:
        """The ASGI application that answers for `replica` (a `serving.replica.Replica`)."""
        ...
