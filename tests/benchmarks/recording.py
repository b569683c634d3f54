"""What the log of completions adds to the last byte of an answer: the time from the engine's end to the client's.

The same streams through a replica twice, with a journal that keeps nothing and with the store on an embedded
PostgreSQL. Clients ask again as soon as they have their answer; an answer takes as long as its tokens would. What the
disk asks for a commit is shown beside it: the log cannot add less.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from service.journal import StoreJournal
from service.postgres.embedded import EmbeddedDatabase
from service.postgres.sessions import Sessions
from service.store.database import migrate
from service.store.store import Store
from serving.contracts import Caller, ChatAnswer, Choice, EngineOutput
from serving.ports import Journal, OnEnded, OnSampled, unseen
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.fakes import FakeEngine, FakeJournal

CONCURRENCY = (1, 8, 32)
ANSWERS = 1500  # measured, of each kind and concurrency
WARM_UP = 100
PROMPT_TOKENS, ANSWER_TOKENS = 500, 200
ANSWER_SECONDS = (0.02, 0.06)  # at concurrency 32: 800 answers a second, more than two cores of an engine write
CALLER = Caller(app="shop")
BODY = {"model": "base", "stream": True, "messages": [{"role": "user", "content": "word " * PROMPT_TOKENS}]}


class QuickEngine(FakeEngine):
    """Answers after a while and notes when it was done, so that nothing but what comes after it is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.ended_at: dict[str, float] = {}
        self._chance = random.Random(0)
        prompt = tuple(self._chance.randrange(50_000) for _ in range(PROMPT_TOKENS))
        answer = tuple(self._chance.randrange(50_000) for _ in range(ANSWER_TOKENS))
        self._output = EngineOutput(prompt, (Choice(index=0, text="word " * ANSWER_TOKENS, token_ids=answer,
                                                    finish_reason="stop"),))  # fmt: skip

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        return ChatAnswer(request_id, request["model"], stream=self._tokens(request_id, on_ended))

    async def _tokens(self, request_id: str, on_ended: OnEnded) -> AsyncIterator[str]:
        await asyncio.sleep(self._chance.uniform(*ANSWER_SECONDS))
        self.ended_at[request_id] = time.perf_counter()
        await on_ended(self._output)
        yield 'data: {"choices": []}\n\n'
        yield "data: [DONE]\n\n"


async def _waits_ms(journal: Journal, concurrency: int) -> list[float]:
    """From the engine's end to the last byte, of each answer; milliseconds."""
    engine = QuickEngine()
    replica = Replica("one", engine, journal, Path("/nonexistent"), ServingSettings())
    await replica.start()
    waits: list[float] = []

    async def client() -> None:
        while len(waits) < ANSWERS + WARM_UP:
            answer = await replica.chat(BODY, CALLER)
            assert answer.stream is not None
            async for _ in answer.stream:
                pass
            waits.append(1000 * (time.perf_counter() - engine.ended_at.pop(answer.completion_id)))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return waits[WARM_UP:]


async def _commits_ms(url: str) -> list[float]:
    """How long one row takes to be durable: what the disk asks for, whoever waits for it; milliseconds."""
    line = Sessions(url).line()
    waits: list[float] = []
    await line.execute("CREATE TABLE bare (id integer)", {})
    for number in range(ANSWERS // 3):
        await asyncio.sleep(ANSWER_SECONDS[0] / 4)
        began = time.perf_counter()
        await line.execute("INSERT INTO bare VALUES (%(number)s)", {"number": number})
        waits.append(1000 * (time.perf_counter() - began))
    await line.close()
    return waits


async def _compare(url: str) -> None:
    store = Store(url)
    print("a commit of one small row: p50 {:.3f} ms, p99 {:.3f} ms".format(*_percentiles(await _commits_ms(url))))
    print("concurrency   without p50   p99 (ms)   with p50   p99 (ms)   added p50   p99 (ms)")
    for concurrency in CONCURRENCY:
        without = _percentiles(await _waits_ms(FakeJournal(), concurrency))
        recorded = _percentiles(await _waits_ms(StoreJournal(store), concurrency))
        added = [with_it - plain for with_it, plain in zip(recorded, without, strict=True)]
        print(
            f"{concurrency:11}" + "".join(f"   {pair[0]:9.3f}  {pair[1]:9.3f}" for pair in (without, recorded, added))
        )
    await store.close()


def _percentiles(waits: list[float]) -> tuple[float, float]:
    ordered = sorted(waits)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def main() -> None:
    print(f"log of completions: {ANSWERS} answers of {ANSWER_TOKENS} tokens to prompts of {PROMPT_TOKENS}")
    with tempfile.TemporaryDirectory() as folder:
        database = EmbeddedDatabase(Path(folder) / "database")
        database.start()
        try:
            migrate(database.url)
            asyncio.run(_compare(database.url))
        finally:
            database.stop()


if __name__ == "__main__":
    main()
