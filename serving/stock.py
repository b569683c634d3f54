"""The adapters in one engine: verified, loaded, tried with one token, and freed. One at a time; the caller sees to that.

Knows neither routes nor requests: which adapter to take in, and which may go, is `shelf.py`'s to say.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving.adapters import verify
from serving.contracts import AdapterFiles
from serving.copies import Copies, Copy
from serving.meter import Meter
from serving.ports import Engine


class Stock:
    """One per replica."""

    def __init__(self, engine: Engine, cache: Path, meter: Meter, *, max_lora_rank: int) -> None:
        self._engine = engine
        self._copies = Copies(cache)
        self._meter = meter
        self._max_lora_rank = max_lora_rank
        self._held: dict[str, Copy] = {}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._held)

    @property
    def places(self) -> int:
        return self._engine.adapter_capacity

    @property
    def full(self) -> bool:
        """Filling a place more would let vLLM evict an adapter that is in use."""
        return len(self._held) >= self.places

    def __contains__(self, name: str) -> bool:
        return name in self._held

    async def put(self, files: AdapterFiles) -> None:
        """Raises `AdapterRefused` and what the engine raises; then nothing has changed."""
        assert files.name not in self._held and not self.full
        copy = await asyncio.to_thread(self._verified_copy, files)
        try:
            await self._engine.load(files.name, str(copy.directory))
            try:
                await self._engine.warm_up(files.name)
            except BaseException:
                await self._engine.unload(files.name)
                raise
        except BaseException:
            copy.release()
            raise
        self._held[files.name] = copy
        self._meter.loaded(files.name)

    async def free(self, name: str) -> None:
        """Only what no request uses."""
        copy = self._held.pop(name)  # first, so that no new request can pin it while the engine lets go
        await self._engine.unload(name)
        copy.release()
        self._meter.unloaded(name)

    async def tidy(self) -> None:
        """Frees this machine's disk of copies that nobody needs."""
        await asyncio.to_thread(self._copies.tidy)

    def _verified_copy(self, files: AdapterFiles) -> Copy:
        def check(directory: Path) -> None:
            verify(
                directory,
                name=files.name,
                base=self._engine.base_fingerprint,
                tokenizer=self._engine.tokenizer_fingerprint,
                max_rank=self._max_lora_rank,
                manifest_sha256=files.manifest_sha256,
            )

        return self._copies.hold(files, check)
