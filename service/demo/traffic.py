"""Clients of the chat endpoint: batches of questions, and a load that runs while other things happen.

Everything goes through the `openai` client over HTTP, as an application's backend would do it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAIError

from training.corpus import Question

MAX_TOKENS = 64  # longer than any answer the seedling has learned
CONCURRENCY = 16


@dataclass(frozen=True)
class Answer:
    """One choice of one completion, as the client saw it."""

    question: Question
    completion_id: str
    choice_index: int
    text: str
    model: str  # the adapter that wrote it


@dataclass
class Tally:
    """What the clients saw go right and wrong."""

    sent: int = 0
    failed: int = 0
    mixed: int = 0  # answers whose parts came from more than one adapter
    by_adapter: Counter[str] = field(default_factory=Counter)
    first_error: str | None = None

    def fail(self, error: Exception) -> None:
        self.failed += 1
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"


class Clients:
    """Many clients of one application. Retries are off: a failure must be seen, not smoothed over."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self.tally = Tally()

    def ask(
        self,
        questions: Sequence[Question],
        *,
        model: str = "policy",
        n: int = 1,
        temperature: float = 1.0,
        done: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """Every question once, every second one streamed; `n` answers each. `done` is called after each question."""
        return asyncio.run(self._ask(questions, model, n, temperature, done))

    def vote(self, votes: Sequence[tuple[Answer, bool, str]]) -> None:
        """Thumbs (answer, up, user), each acknowledged by a 201. Raises when one is not."""
        asyncio.run(self._vote(votes))

    async def _ask(
        self, questions: Sequence[Question], model: str, n: int, temperature: float, done: Callable[[], None]
    ) -> list[Answer]:
        gate = asyncio.Semaphore(CONCURRENCY)
        async with self._client() as client:

            async def one(i: int, question: Question) -> list[Answer]:
                async with gate:
                    answers = await ask(client, self.tally, question, model, n, temperature, stream=i % 2 == 1)
                    done()
                    return answers

            batches = await asyncio.gather(*(one(i, question) for i, question in enumerate(questions)))
        return [answer for batch in batches for answer in batch]

    async def _vote(self, votes: Sequence[tuple[Answer, bool, str]]) -> None:
        gate = asyncio.Semaphore(CONCURRENCY)
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(base_url=f"{self._url}/v1", headers=headers, timeout=60) as client:

            async def one(answer: Answer, up: bool, user: str) -> None:
                body = {
                    "completion_id": answer.completion_id,
                    "choice_index": answer.choice_index,
                    "rating": "up" if up else "down",
                    "user": user,
                }
                async with gate:
                    reply = await client.post("/feedback", json=body)
                if reply.status_code != 201:
                    raise RuntimeError(f"a vote was answered {reply.status_code}: {reply.text}")

            await asyncio.gather(*(one(*vote) for vote in votes))

    def _client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self._url}/v1", api_key=self._key, max_retries=0, timeout=120)

    def load(self, questions: Sequence[Question], clients: int = 4) -> Load:
        return Load(self._client, self.tally, questions, clients)


class Load:
    """Clients that never stop asking, in a thread of their own, while the block lasts."""

    def __init__(
        self, client: Callable[[], AsyncOpenAI], tally: Tally, questions: Sequence[Question], clients: int
    ) -> None:
        self._client = client
        self._tally = tally
        self._questions = questions
        self._clients = clients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with self._client() as client:
            await asyncio.gather(*(self._one(client, k) for k in range(self._clients)))

    async def _one(self, client: AsyncOpenAI, k: int) -> None:
        i = k
        while not self._stop.is_set():
            question = self._questions[i % len(self._questions)]
            await ask(client, self._tally, question, "policy", 1, 1.0, stream=i % 2 == 0)
            i += self._clients + 1


async def ask(
    client: AsyncOpenAI, tally: Tally, question: Question, model: str, n: int, temperature: float, *, stream: bool
) -> list[Answer]:
    """One request, counted. A failed one gives no answers."""
    tally.sent += 1
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question.prompt}],
        "n": n,
        "temperature": temperature,
        "max_tokens": MAX_TOKENS,
        "user": "demo",
    }
    try:
        answers, models = await (_streamed if stream else _whole)(client, question, body)
    except (OpenAIError, RuntimeError) as error:
        tally.fail(error)
        return []
    tally.mixed += len(models) > 1
    tally.by_adapter.update(models)
    return answers


async def _whole(client: AsyncOpenAI, question: Question, body: dict[str, Any]) -> tuple[list[Answer], set[str]]:
    reply = await client.chat.completions.create(**body)
    answers = [Answer(question, reply.id, c.index, c.message.content or "", reply.model) for c in reply.choices]
    return answers, {reply.model}


async def _streamed(client: AsyncOpenAI, question: Question, body: dict[str, Any]) -> tuple[list[Answer], set[str]]:
    texts: dict[int, str] = {}
    models: set[str] = set()  # every chunk names its adapter; more than one name would be a mixed answer
    completion_id, finished = "", 0
    async for chunk in await client.chat.completions.create(**body, stream=True):
        completion_id = chunk.id
        models.add(chunk.model)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finished += choice.finish_reason is not None
    if finished != body["n"]:
        raise RuntimeError(f"the stream of {completion_id} ended early")
    return [Answer(question, completion_id, i, text, min(models)) for i, text in sorted(texts.items())], models
