"""What stands in for the engine and the store: written, never patched. `fake_host.py` and `fake_trainer.py` are the others.

Each fake is strict where the real thing would fail silently: this engine notices an adapter that is taken away under
a running answer.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from serving.contracts import BASE, AdapterFiles, Answer, ChatAnswer, Choice, Completion, EngineOutput, Outcome, Route
from serving.errors import (
    AdapterRefused,
    RequestRefused,
)
from serving.ports import OnEnded, OnSampled, unseen
from tests.adapter_files import FINGERPRINTS

EOS = 2
LONGEST_PROMPT = 2000  # tokens of the fake engine's context; its tokens are bytes


async def until(condition: Callable[[], bool]) -> None:
    """Lets the other tasks run until it is so."""
    while not condition():  # noqa: ASYNC110 - what changes it is the code under test, which sets no event
        await asyncio.sleep(0)


class Killed(BaseException):
    """The process ends here, whatever it was about to do. No handler of errors sees it."""


class EngineDead(Exception):
    """The engine's process is gone."""


# --- the engine ---------------------------------------------------------------------------------------


class FakeEngine:
    """`serving.contracts.Engine`. Each token of an answer names the adapter it comes from, so a mixture would show.

    A token reads `<adapter>/<seed>/<choice>/<position>`. While `flowing` is cleared, answers stop after their first
    token and stay in flight.
    """

    def __init__(self, *, capacity: int = 4, tokens: int = 4) -> None:
        self.tokenizer_fingerprint = FINGERPRINTS.tokenizer
        self.base_fingerprint = FINGERPRINTS.base_model
        self.adapter_capacity = capacity
        self.tokens = tokens  # of an answer, unless max_tokens is less
        self.token_seconds = 0.0  # that one token takes
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.starting = asyncio.Event()  # while it is cleared, no answer gets its first token
        self.starting.set()
        self.running: dict[str, asyncio.Event] = {}  # id of a request that is worked on -> it was stopped
        self.sampled = 0  # tokens of all answers; those of one position count once
        self.loading = asyncio.Event()  # while it is cleared, load() does not come back
        self.loading.set()
        self.unloadable: set[str] = set()  # adapters that load() refuses
        self.unusable: set[str] = set()  # adapters that load and then cannot generate
        self.dtype = "float32"
        self.control_tokens = frozenset({"<|end|>"})
        self.context_tokens = LONGEST_PROMPT
        self.apart = 0.0  # nats a token between this engine's scores and the trainer's
        self.says: Callable[[dict[str, Any]], str] | None = (
            None  # a chat's answer, in place of words that name the adapter
        )
        self.dead = False
        self.history: list[tuple[str, str]] = []  # (load | warm_up | unload, adapter), in order
        self.opened: list[str] = []  # the directories that were loaded from
        self._loaded: dict[str, int] = {}  # adapter -> which load of it this is

    @property
    def loaded(self) -> set[str]:
        return set(self._loaded)

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        self._require_alive()
        adapter = request["model"]
        prompt = json.dumps(request["messages"]).encode()
        if len(prompt) > LONGEST_PROMPT:
            raise RequestRefused("The prompt is too long.", param="messages", code="context_length_exceeded")
        sampled = self._recorded(request, request_id, on_ended, on_sampled, tuple(prompt))
        if request.get("stream"):
            return ChatAnswer(request_id, adapter, stream=sampled)
        texts: dict[int, str] = {}
        async for event in sampled:
            for choice in chunk(event).get("choices", []):
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"]["content"]
        choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in texts.items()]
        return ChatAnswer(request_id, adapter, body={"id": request_id, "model": adapter, "choices": choices})

    async def stop(self, request_id: str) -> None:
        if request_id in self.running:
            self.running[request_id].set()

    async def _recorded(
        self,
        request: dict[str, Any],
        request_id: str,
        on_ended: OnEnded,
        on_sampled: OnSampled,
        prompt: tuple[int, ...],
    ) -> AsyncIterator[str]:
        """Whatever ends it, `on_ended` is told once."""
        self.running[request_id] = asyncio.Event()
        said: list[list[str]] = []  # [tokens][choices]
        outcome: Outcome = "cancelled"
        try:
            async for words, end in self._sample(request, self.running[request_id]):
                said.append(words)
                self.sampled += 1
                on_sampled()
                if end is not None:
                    outcome = "finished"
                    choices = tuple(_choice(i, w, end) for i, w in enumerate(zip(*said, strict=True)))
                    await on_ended(EngineOutput(prompt, choices))
                deltas = [{"index": index, "delta": {"content": word}} for index, word in enumerate(words)]
                yield f"data: {json.dumps({'id': request_id, 'model': request['model'], 'choices': deltas})}\n\n"
            yield "data: [DONE]\n\n"
        except Exception:
            if outcome == "cancelled":
                outcome = "failed"
                await on_ended(EngineOutput(prompt, (), "failed"))
            raise
        finally:
            del self.running[request_id]
            if outcome == "cancelled":
                choices = tuple(_choice(i, w, "cancelled") for i, w in enumerate(zip(*said, strict=True)))
                await on_ended(EngineOutput(prompt, choices, "cancelled"))

    async def _sample(
        self, request: dict[str, Any], stopped: asyncio.Event
    ) -> AsyncIterator[tuple[list[str], str | None]]:
        """The next word of each choice, and with the last ones why they are."""
        adapter, seed = request["model"], request.get("seed", 0)
        length = min(self.tokens, request.get("max_tokens") or self.tokens)
        answers = [
            [f"{adapter}/{seed}/{index}/{position} " for position in range(length)]
            for index in range(request.get("n") or 1)
        ]
        if self.says is not None:
            words = [f"{word} " for word in self.says(request).split(" ")][: request.get("max_tokens")]
            length, answers = len(words), [words] * len(answers)
        load = self._serial(adapter)
        for position in range(length):
            await self._flow(stopped, first=position == 0)
            if stopped.is_set():
                return
            self._require_alive()
            assert self._serial(adapter) == load, f"{adapter} was taken away under a running answer"
            whole = length == self.tokens or self.says is not None
            end = ("stop" if whole else "length") if position == length - 1 else None
            yield [words[position] for words in answers], end

    async def _flow(self, stopped: asyncio.Event, *, first: bool) -> None:
        gate = self.starting if first else self.flowing
        if not gate.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (gate, stopped)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        await asyncio.sleep(self.token_seconds)  # other requests and swaps come between

    async def load(self, name: str, directory: str) -> None:
        if name in self.unloadable:
            raise AdapterRefused(f"the engine does not load {name}")
        await self.loading.wait()
        await asyncio.sleep(0)
        assert name not in self._loaded, f"{name} is loaded already"
        assert len(self._loaded) < self.adapter_capacity, "one adapter more than there are places"
        self.history.append(("load", name))
        self.opened.append(directory)
        self._loaded[name] = len(self.history)

    async def warm_up(self, name: str) -> None:
        self._require_alive()
        assert name == BASE or name in self._loaded
        self.history.append(("warm_up", name))
        if name in self.unusable:
            raise EngineDead(f"no token comes from {name}")

    async def score(self, name: str, answer: Answer) -> tuple[float, ...]:
        self._require_alive()
        load = self._serial(name)
        await asyncio.sleep(0)
        assert self._serial(name) == load, f"{name} was taken away while it was scored"
        self.history.append(("score", name))
        return tuple(logprob(token) + self.apart for token in answer.token_ids)

    async def unload(self, name: str) -> None:
        self.history.append(("unload", name))
        del self._loaded[name]
        await asyncio.sleep(0)

    async def check_health(self) -> None:
        self._require_alive()

    def shutdown(self) -> None:
        self.dead = True

    def _serial(self, adapter: str) -> int:
        if adapter == BASE:
            return 0
        assert adapter in self._loaded, f"{adapter} is not loaded"
        return self._loaded[adapter]

    def _require_alive(self) -> None:
        if self.dead:
            raise EngineDead("the engine's process is gone")


def _choice(index: int, words: Sequence[str], finish_reason: str) -> Choice:
    ids = [zlib.crc32(word.encode()) & 0x7FFF_FFFF for word in words]
    return Choice(
        index=index,
        text="".join(words),
        token_ids=(*ids, EOS) if finish_reason == "stop" else tuple(ids),
        finish_reason=finish_reason,
    )


def logprob(token: int) -> float:
    """What the fake policy gives a token, whatever comes before it; in nats."""
    return -1.0 - token % 7 / 7


def chunk(event: str) -> dict[str, Any]:
    """What a server-sent event carries; nothing for the one that ends a stream."""
    data = event.removeprefix("data: ").strip()
    return {} if data == "[DONE]" else json.loads(data)


def text_of(event: str) -> str:
    """The part of an answer that a server-sent event adds."""
    return "".join(choice["delta"]["content"] for choice in chunk(event).get("choices", []))


def authors(text: str) -> set[str]:
    """The adapters that the fake engine's answer names; one, unless answers were mixed."""
    return {word.split("/")[0] for word in text.split()}


# --- the store ----------------------------------------------------------------------------------------


class FakeJournal:
    """`serving.contracts.Journal` in memory."""

    def __init__(self, *adapters: AdapterFiles, route: Route | None = None) -> None:
        self.current = route or Route()
        self.adapters = {files.name: files for files in adapters}
        self.records: list[Completion] = []
        self.leases: dict[str, frozenset[str]] = {}  # replica -> the adapters it needs
        self.lookups = 0  # how often the names of all adapters were asked for
        self.away = False
        self.refuses = False  # to let an answer go out without its record
        self.recording: asyncio.Event | None = None  # until it is set, no record becomes durable
        self.arrived = 0  # records that were to be written

    async def route(self) -> Route:
        self._require_here()
        return self.current

    async def adapter(self, name: str) -> AdapterFiles | None:
        self._require_here()
        return self.adapters.get(name)

    async def published(self) -> frozenset[str]:
        self._require_here()
        self.lookups += 1
        return frozenset(self.adapters)

    async def ready(self) -> None:
        if self.refuses:
            self._require_here()

    async def record(self, completion: Completion) -> bool:
        if self.refuses:
            self._require_here()
        self.arrived += 1
        await (asyncio.sleep(0) if self.recording is None else self.recording.wait())
        if not self.away:
            self.records.append(completion)
        return not self.away

    async def lease(self, replica: str, adapters: frozenset[str], seconds: float) -> None:
        self._require_here()
        self.leases[replica] = adapters

    async def close(self) -> None:
        self.away = True

    def _require_here(self) -> None:
        if self.away:
            raise ConnectionError("the store is away")
