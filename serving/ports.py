"""What a replica needs of others: an engine, the store, and what is plugged into its process. Imports neither vLLM nor Ray.

`serving/engine.py` implements `Engine`; the composition root hands in an `Edge`, and with it a `Journal` that writes to
the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from serving.contracts import AdapterFiles, Answer, ChatAnswer, Completion, EngineOutput, Route

OnEnded = Callable[[EngineOutput], Awaitable[None]]
OnSampled = Callable[[], None]


def unseen() -> None:
    """For `OnSampled`, where nobody waits for the first token."""


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
