"""One replica of the policy: which adapter answers, who is pinned to what, how a swap happens. No Ray, no vLLM.

Last of the seven files of a thumbs-up: `service/registry.py` published an adapter and changed the route; here the
next request is answered by it. The requests that began before finish on the adapter they began with.

A swap is one assignment of an immutable `Route` in one event loop. Between reading the route and counting a
request as pinned there is no `await`, so no request can fall between two adapters (invariant 3).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import requests
from serving.adapters import fetch, verify
from serving.contracts import (
    BASE,
    AdapterFiles,
    Answer,
    Caller,
    ChatAnswer,
    Completion,
    Engine,
    EngineOutput,
    Journal,
    Prepared,
    ReplicaStatus,
    Route,
    Scores,
)
from serving.errors import AdapterRefused, NoRoom, UnknownModel
from serving.pins import Pin, PinnedStream
from serving.rateable import Record, marked, unrateable

log = logging.getLogger(__name__)


class Replica:
    """Routes requests to adapters of one engine, and follows the route row."""

    def __init__(self, name: str, engine: Engine, journal: Journal, cache: Path, *, max_lora_rank: int) -> None:
        self.name = name
        self._engine = engine
        self._journal = journal
        self._cache = cache  # where this machine keeps its copies of published adapters
        self._max_lora_rank = max_lora_rank
        self._route = Route(generation=-1)  # replaced as a whole, never changed
        self._loaded: set[str] = set()
        self._prepared: str | None = None  # loaded for a promotion that may still be called off
        self._in_flight: Counter[str] = Counter()
        self._changing = asyncio.Lock()  # one load or unload at a time
        self._error: str | None = None
        self._unlogged = 0

    # --- answering ----------------------------------------------------------------------------------

    async def chat(self, body: Any, caller: Caller) -> ChatAnswer:
        """Answer an OpenAI chat body. Raises `RequestRefused` and `UnknownModel`; records what it sampled."""
        request = requests.check(body)
        await self._journal.ready()
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        adapter = self._resolve(request["model"])
        pin = Pin(self._in_flight, adapter)
        record = Record()

        async def keep(output: EngineOutput) -> None:
            record.durable = await self._journal.record(self._completion(completion_id, adapter, body, caller, output))
            self._unlogged += not record.durable

        try:
            answer = await self._engine.chat({**request, "model": adapter}, completion_id, keep)
        except BaseException:
            pin.release()
            raise
        if answer.stream is None:
            pin.release()
            return answer if record.durable else unrateable(answer)
        return ChatAnswer(completion_id, adapter, stream=PinnedStream(marked(answer.stream, record), pin))

    def models(self) -> list[str]:
        """What `model` may be: the aliases with an adapter behind them, then full names."""
        aliases = ("policy", "policy@stable", "policy@previous", "policy@candidate", BASE)
        return [a for a in aliases if self._route.alias(a) is not None] + sorted(self._loaded)

    def _resolve(self, model: str) -> str:
        adapter = self._route.alias(model)
        if adapter is None and model in self._loaded:
            adapter = model
        if adapter is None:
            raise UnknownModel(model)
        assert adapter == BASE or adapter in self._loaded, f"the route names {adapter}, which is not loaded"
        return adapter

    def _completion(
        self, completion_id: str, adapter: str, body: dict[str, Any], caller: Caller, output: EngineOutput
    ) -> Completion:
        return Completion(
            id=completion_id,
            app=caller.app,
            adapter=adapter,
            model=body["model"],
            created_at=datetime.now(UTC),
            user=body.get("user"),
            metadata=body.get("metadata") or {},
            store=body.get("store") is not False,
            messages=body["messages"],
            sampling=requests.sampling(body),
            tokenizer_fingerprint=self._engine.tokenizer_fingerprint,
            prompt_token_ids=output.prompt_token_ids,
            choices=output.choices,
        )

    # --- swapping -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what the route names. A replica is ready only after this (DESIGN, section 2)."""
        await self._follow(await self._journal.route())

    async def prepare(self, name: str) -> Prepared:
        """Phase one of a promotion: verify, load, generate one token. Serving goes on; the route stays."""
        began = time.monotonic()
        try:
            async with self._changing:
                await self._load(name, keep=frozenset({name}))
                self._prepared = name
            error = None
        except Exception as problem:  # any failure is an answer: the promotion is called off and nothing changed
            log.warning("prepare %s failed: %s", name, problem)
            error = f"{type(problem).__name__}: {problem}"
        return Prepared(replica=self.name, adapter=name, seconds=time.monotonic() - began, error=error)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """Log-probs of the answers under a candidate, published or not. It stays loaded, as after `prepare`.

        Raises what loading raises. All answers at once: how many tokens go through the model together, and with them
        the memory of their logits, is bounded by the engine and not by their number.
        """
        async with self._changing:
            await self._load(files.name, keep=frozenset({files.name}), files=files)
            self._prepared = files.name
            pin = Pin(self._in_flight, files.name)
        try:
            scoring = (self._engine.score(files.name, answer) for answer in answers)
            found = await asyncio.gather(*scoring, return_exceptions=True)  # none is left behind when one fails
        finally:
            pin.release()
        for failure in (one for one in found if isinstance(one, BaseException)):
            raise failure
        logprobs = tuple(one for one in found if not isinstance(one, BaseException))
        return Scores(replica=self.name, dtype=self._engine.dtype, logprobs=logprobs)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: free what `prepare` loaded."""
        if self._prepared == name:
            self._prepared = None
        await self._retire()

    async def flip(self, route: Route) -> ReplicaStatus:
        """Phase two: from now on new requests follow this route. An older route than ours changes nothing."""
        await self._follow(route)
        return self.status()

    async def reconcile(self) -> None:
        """Read the route row and catch up; also frees adapters whose last request has ended."""
        try:
            await self._follow(await self._journal.route())
            await self._retire()
        except Exception as problem:  # keep serving what we have, and say why we lag
            self._error = f"{type(problem).__name__}: {problem}"
            log.warning("replica %s lags behind the route: %s", self.name, self._error)

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            replica=self.name,
            generation=self._route.generation,
            stable=self._route.stable,
            loaded=tuple(sorted(self._loaded)),
            in_flight={name: count for name, count in self._in_flight.items() if count},
            error=self._error,
            unlogged=self._unlogged,
        )

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def _follow(self, route: Route) -> None:
        async with self._changing:  # else another task could unload what this route names before it is our route
            if route.generation > self._route.generation:
                for name in sorted(route.wanted()):
                    await self._load(name, keep=route.wanted())
                self._route = route
                if self._prepared in route.wanted():
                    self._prepared = None
            self._error = None
        await self._retire()

    async def _load(self, name: str, keep: frozenset[str], files: AdapterFiles | None = None) -> None:
        """Caller holds the lock. `keep` must not make room for it. Without `files` it must have been published."""
        if name in self._loaded:
            return
        await self._make_room(keep)
        files = files or await self._journal.adapter(name)
        if files is None:
            raise AdapterRefused(f"adapter {name} was never published")
        directory = await asyncio.to_thread(self._verified_copy, files)
        await self._engine.load(name, str(directory))
        try:
            await self._engine.warm_up(name)
        except BaseException:
            await self._engine.unload(name)
            raise
        self._loaded.add(name)

    def _verified_copy(self, files: AdapterFiles) -> Path:
        directory = fetch(files, self._cache)
        try:
            verify(
                directory,
                name=files.name,
                base=self._engine.base_fingerprint,
                tokenizer=self._engine.tokenizer_fingerprint,
                max_rank=self._max_lora_rank,
                manifest_sha256=files.manifest_sha256,
            )
        except AdapterRefused:
            shutil.rmtree(directory, ignore_errors=True)  # the next attempt fetches it anew
            raise
        return directory

    async def _make_room(self, keep: frozenset[str]) -> None:
        """Caller holds the lock. Filling the last place would let vLLM evict an adapter that is in use."""
        while len(self._loaded) >= self._engine.adapter_capacity and (unneeded := self._unneeded() - keep):
            await self._unload(min(unneeded))
        if len(self._loaded) >= self._engine.adapter_capacity:
            raise NoRoom(
                f"all {self._engine.adapter_capacity} adapter places are in use by {sorted(self._loaded)}; "
                "wait for their requests to end or raise serving.adapter_places"
            )

    async def _retire(self) -> None:
        async with self._changing:
            while unneeded := self._unneeded():  # asked anew each time: a request may pin one while we unload another
                await self._unload(min(unneeded))

    def _unneeded(self) -> set[str]:
        return {name for name in self._loaded - self._route.wanted() - {self._prepared} if not self._in_flight[name]}

    async def _unload(self, name: str) -> None:
        self._loaded.discard(name)  # first, so that no new request can pin it while the engine lets go
        await self._engine.unload(name)
