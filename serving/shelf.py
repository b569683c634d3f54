"""The adapters that a replica holds in its engine, and the route that says which of them it must hold.

Knows no requests but their number on each adapter. Loads and unloads are one at a time; a route is replaced as a whole
in one assignment, and between reading it and counting a request as pinned there is no `await`, so no request can fall
between two adapters (invariant 3).
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path

from serving.adapters import fetch, verify
from serving.contracts import BASE, AdapterFiles, Engine, Journal, Route
from serving.errors import AdapterRefused, NoRoom, UnknownModel
from serving.meter import Meter
from serving.pins import Pin


class Shelf:
    """One per replica."""

    def __init__(self, engine: Engine, journal: Journal, cache: Path, meter: Meter, *, max_lora_rank: int) -> None:
        self._engine = engine
        self._journal = journal
        self._cache = cache  # where this machine keeps its copies of published adapters
        self._meter = meter
        self._max_lora_rank = max_lora_rank
        self._route = Route(generation=-1)  # replaced as a whole, never changed
        self._loaded: set[str] = set()
        self._tried: str | None = None  # loaded for a promotion that may still be called off
        self._in_flight: Counter[str] = Counter()
        self._changing = asyncio.Lock()  # one load or unload at a time

    @property
    def route(self) -> Route:
        return self._route

    @property
    def loaded(self) -> frozenset[str]:
        return frozenset(self._loaded)

    @property
    def in_flight(self) -> dict[str, int]:
        """Adapter -> requests pinned to it."""
        return {name: count for name, count in self._in_flight.items() if count}

    async def pin(self, model: str) -> Pin:
        """Count one request as running on the adapter that `model` names now. Raises `UnknownModel`."""
        adapter = self._route.alias(model)
        if adapter is None and model in self._loaded:
            adapter = model
        if adapter is None:
            raise UnknownModel(model)
        assert adapter == BASE or adapter in self._loaded, f"the route names {adapter}, which is not loaded"
        return Pin(self._in_flight, adapter)

    async def follow(self, route: Route) -> None:
        """Hold all that the route names, then let it decide; frees what it does not name. An older one changes nothing."""
        async with self._changing:  # else another task could unload what this route names before it is our route
            if route.generation > self._route.generation:
                for name in sorted(route.wanted()):
                    await self._load(name, keep=route.wanted())
                self._route = route
                if self._tried in route.wanted():
                    self._tried = None
        await self.retire()

    async def try_out(self, name: str, files: AdapterFiles | None = None) -> Pin:
        """Verify, load, generate one token; it stays until `abandon` or a route that does not name it.

        Without `files` it must have been published. The pin is the caller's to release. Raises what is wrong with it.
        """
        async with self._changing:
            await self._load(name, keep=frozenset({name}), files=files)
            self._tried = name
            return Pin(self._in_flight, name)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: free what `try_out` loaded."""
        if self._tried == name:
            self._tried = None
        await self.retire()

    async def retire(self) -> None:
        """Free all that nobody needs any more."""
        async with self._changing:
            while unneeded := self._unneeded():  # asked anew each time: a request may pin one while we unload another
                await self._unload(min(unneeded))

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
        self._meter.loaded(name)

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

    def _unneeded(self) -> set[str]:
        return {name for name in self._loaded - self._route.wanted() - {self._tried} if not self._in_flight[name]}

    async def _unload(self, name: str) -> None:
        self._loaded.discard(name)  # first, so that no new request can pin it while the engine lets go
        await self._engine.unload(name)
        self._meter.unloaded(name)
