"""Clients that chat without a pause while adapters are swapped, and all that they have to complain of.

The fake engine's words name the adapter that they come from, so a client sees for itself whether its answer is whole;
a real one's do not, and there it is the model that each chunk names.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.contracts import BASE
from tests.fakes import authors
from tests.line import DONE, Line, Reply

CHAT = "/v1/chat/completions"
BODY = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Storm:
    """Half of the clients stream. `newest` is the ordinal that is promoted everywhere: whoever asks now is answered by
    it or a newer one."""

    host: str
    port: int
    key: str
    clients: int = 8
    tokens: int | None = None  # of an answer; None: as many as the engine gives
    pause_seconds: float = 0.0  # of a client between its answer and its next question
    authored: bool = True  # the words name their adapter
    newest: int = 0
    over: bool = False
    answers: int = 0
    faults: list[str] = field(default_factory=list)
    first_tokens: list[tuple[float, float]] = field(default_factory=list)  # (when it was asked, seconds) of each stream

    async def run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        stream = number % 2 == 0
        body = BODY | {"stream": stream} | ({"max_tokens": self.tokens} if self.tokens else {})
        async with Line(self.host, self.port, self.key) as line:
            while not self.over:
                newest, asked = self.newest, time.perf_counter()
                try:
                    reply = await line.post(CHAT, body)
                except (OSError, EOFError) as error:
                    self.faults.append(f"failed: {error!r}")
                    continue
                self.answers += 1
                self.faults += faults(reply, newest, stream=stream, authored=self.authored)
                if stream:
                    self.first_tokens.append((asked, reply.first_seconds))
                await asyncio.sleep(self.pause_seconds)


def faults(reply: Reply, newest: int, *, stream: bool, authored: bool) -> Iterator[str]:
    """What is wrong with an answer: it failed, is a mixture, or is stale."""
    if reply.status != 200:
        yield f"failed: {reply.status} {b''.join(reply.parts).decode()[:200]}"
        return
    adapter = reply.headers["x-policy-version"]
    text, named = _streamed(reply) if stream else _whole(reply)
    if text is None:
        yield f"failed: {reply.events[-1][:200]}"
        return
    if authored:
        named |= authors(text)
    if named != {adapter}:
        yield f"mixed: {named} under the name of {adapter}"
    if (0 if adapter == BASE else int(adapter.split("-")[1])) < newest:
        yield f"stale: {adapter} after {newest} was promoted"


def _streamed(reply: Reply) -> tuple[str | None, set[str]]:
    """The text, None when it broke off; and the model that each chunk names."""
    if reply.events[-1] != DONE:
        return None, set()
    chunks = [json.loads(event) for event in reply.events[:-1]]
    parts = (choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return "".join(parts), {chunk["model"] for chunk in chunks}


def _whole(reply: Reply) -> tuple[str, set[str]]:
    body: dict[str, Any] = reply.body
    return body["choices"][0]["message"]["content"], {body["model"]}


@contextmanager
def storming(storm: Storm) -> Iterator[Storm]:
    """It blows in a thread of its own, as long as the block lasts."""
    thread = threading.Thread(target=lambda: asyncio.run(storm.run()))
    thread.start()
    try:
        yield storm
    finally:
        storm.over = True
        thread.join()
