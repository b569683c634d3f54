"""Records and rounds as the tests of the service need them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from service.contracts import Round, RoundState
from service.pairs import Pair, Source
from service.store.store import Store
from serving.contracts import Choice, Completion

# The same examples in every run, and none fails because the machine is busy.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

FROZEN: dict[str, Any] = {
    "parent": "base",
    "snapshot": "/pairs.parquet",
    "pair_digest": "d" * 64,
    "adapter_ordinal": 1,
    "funnel": {"votes": 2},
    "rows": 1,
}
A_PAIR = Pair(id="p", source=Source.IMPORT, prompt_digest="0" * 64, app=None, chosen=None, rejected=None)


@pytest.fixture
def make_completion() -> Callable[..., Completion]:
    """Builds records of answers; what a test does not name is something valid."""

    def make(id: str, *answers: str, **fields: Any) -> Completion:
        texts = answers or ("an answer",)
        defaults: dict[str, Any] = {
            "app": "shop",
            "adapter": "base",
            "model": "policy",
            "created_at": datetime(2026, 1, 2, tzinfo=UTC),
            "user": "ada",
            "metadata": {"page": "7"},
            "store": True,
            "messages": [{"role": "user", "content": "a question"}],
            "sampling": {"temperature": 0.7},
            "tokenizer_fingerprint": "f" * 64,
            "prompt_token_ids": (1, 2, 3),
            "choices": tuple(
                Choice(index=index, text=text, token_ids=tuple(text.encode()), finish_reason="stop")
                for index, text in enumerate(texts)
            ),
        }
        return Completion(id=id, **(defaults | fields))

    return make


@pytest.fixture
def start_round(store: Store) -> Callable[..., Awaitable[Round]]:
    """Creates a round and moves it along the usual way to the state asked for."""

    async def start(
        state: RoundState = RoundState.QUEUED, pairs: Sequence[Pair] = (A_PAIR,), settled: Sequence[Pair] = ()
    ) -> Round:
        started, _ = await store.rounds.create(
            settings={}, requested_by="tess", note=None, idempotency_key=None, body_sha256="0" * 64
        )
        if state is RoundState.QUEUED:
            return started
        moved = await store.rounds.move(started.n, expect=RoundState.QUEUED, to=RoundState.COLLECTING)
        if state is RoundState.COLLECTING:
            return moved
        frozen = await store.rounds.freeze(started.n, attempt=0, pairs=pairs, settled=settled, held_out=set(), **FROZEN)
        if state is RoundState.TRAINING:
            return frozen
        judged = await store.rounds.move(started.n, expect=RoundState.TRAINING, to=RoundState.JUDGING)
        if state is RoundState.JUDGING:
            return judged
        return await store.rounds.move(started.n, expect=RoundState.JUDGING, to=state)

    return start
