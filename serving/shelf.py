"""The adapters that a replica holds, and the route that says which of them it must hold.

Knows no requests but their number on each adapter. Loads and unloads are one at a time, and nothing that is loaded
already waits for them: a route is replaced as a whole in one assignment, and between reading it and counting a request
as pinned there is no `await`, so no request can fall between two adapters (invariant 3).

    needed   named by the route, or pinned by a request: never unloaded
    tried    loaded for a promotion that may still be called off: gives way to another promotion only
    asked    for by its full name, a while ago: gives way to whoever needs its place, the longest ago first
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from serving.catalogue import Catalogue
from serving.contracts import BASE, ROUTED, AdapterFiles, Route
from serving.errors import AdapterRefused, NoRoom, RequestRefused, UnknownModel
from serving.faults import Faults
from serving.leases import Leases
from serving.meter import Meter
from serving.pins import Pin
from serving.ports import Engine, Journal
from serving.routing import draw
from serving.settings import ServingSettings
from serving.stock import Stock


class Shelf:
    """One per replica."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        cache: Path,
        meter: Meter,
        settings: ServingSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._stock = Stock(engine, cache, meter, max_lora_rank=settings.max_lora_rank)
        self._idle_seconds = settings.idle_adapter_seconds
        self._clock = clock
        self._catalogue = Catalogue(journal, clock)
        self._leases = Leases(meter.replica, journal, self._leased, clock)
        self._faults = Faults(clock)
        self._route = Route(generation=-1)  # that decides; replaced as a whole, never changed
        self._newest = self._route  # that we were told of
        self._coming: str | None = None  # is being loaded
        self._tried: set[str] = set()
        self._kept_until: dict[str, float] = {}  # of what was tried or asked for
        self._in_flight: Counter[str] = Counter()
        self._changing = asyncio.Lock()  # one load or unload at a time
        self._changes: set[asyncio.Task[None]] = set()

    @property
    def route(self) -> Route:
        return self._route

    @property
    def wanted(self) -> frozenset[str]:
        """What the newest route names that we were told of."""
        return self._newest.wanted()

    @property
    def loaded(self) -> frozenset[str]:
        return self._stock.names

    @property
    def in_flight(self) -> dict[str, int]:
        """Adapter -> requests pinned to it."""
        return {name: count for name, count in self._in_flight.items() if count}

    @property
    def trouble(self) -> str | None:
        """Why not all that the route names is loaded; None: it is."""
        return self._faults.of(self._route.wanted() - self.loaded)

    # --- requests ---------------------------------------------------------------------------------------

    async def pin(self, model: str, sticky: str) -> Pin:
        """Count one request as running on the adapter that `model` names now; `sticky`: see `routing.sticky_key`.

        A full name that is not loaded is loaded first. Raises `UnknownModel`, `NoRoom` where requests and the route need
        all places, `RequestRefused` for an adapter that cannot be served, and what the store raises.
        """
        adapter = self._drawn(sticky) if model == ROUTED else self._route.alias(model)
        by_name = adapter is None
        if by_name and model not in self._stock and not await self._catalogue.has(model):
            raise UnknownModel(model)
        pin = Pin(self._in_flight, adapter or model)  # before it is loaded: what is pinned is not unloaded
        try:
            if not self._answers(pin.adapter):
                await self._fetch(pin.adapter)
        except BaseException:
            pin.release()
            raise
        if by_name:
            self._keep_a_while(pin.adapter)
        return pin

    def _drawn(self, sticky: str) -> str:
        """For a candidate or a baseline that could not be loaded here the stable adapter answers."""
        adapter = draw(self._route, sticky)
        return adapter if self._answers(adapter) else self._route.stable

    def _answers(self, name: str) -> bool:
        return name == BASE or name in self._stock

    async def _fetch(self, name: str) -> None:
        """For a request that asks for this adapter."""
        self._require_a_place(name)
        try:
            await self._undisturbed(self._load_on_request(name))
        except AdapterRefused as refusal:
            raise RequestRefused(f"{refusal}.", status=503, param="model", code="adapter_unavailable") from refusal

    async def _load_on_request(self, name: str) -> None:
        async with self._changing:
            if name in self._stock:
                return
            self._require_a_place(name)
            self._faults.check(name)
            files = await self._journal.adapter(name)
            if files is None:
                self._catalogue.forget(name)
                raise UnknownModel(name)
            await self._load(name, keep=self._tried, files=files)

    def _require_a_place(self, name: str) -> None:
        """Whoever asks for adapters by name leaves a place for the next one that is to answer everybody."""
        needed = {name, *self._needed()}
        if len(needed) + max(1, len(self._tried - needed)) > self._stock.places:
            others = ", ".join(sorted(needed - {name}))
            raise NoRoom(
                f"There is no place for {name}: the route and running requests need {others}. "
                "Try again later, or raise serving.adapter_places"
            )

    # --- swaps ------------------------------------------------------------------------------------------

    async def follow(self, route: Route) -> None:
        """Let the route decide: at once where all that it names is loaded, else as soon as that is.

        An older one changes nothing. Raises why something cannot be loaded, and then the route before still decides;
        but an adapter that is refused, other than the stable one, is done without: see `trouble`.
        """
        if route.generation > self._newest.generation:
            self._newest = route
        if not self._adopt(route, without=self._faults.fresh):
            await self._undisturbed(self._catch_up(route))

    def _adopt(self, route: Route, without: AbstractSet[str]) -> bool:
        """False: something is still to be loaded. There is no `await` here: a swap is one assignment."""
        if route.generation <= self._route.generation and route != self._route:
            return True
        if not self._answers(route.stable) or route.wanted() - self.loaded - without:
            return False
        self._route = route
        for name in route.wanted():  # these stay because the route says so, and go when it no longer does
            self._tried.discard(name)
            self._kept_until.pop(name, None)
        return True

    async def _catch_up(self, route: Route) -> None:
        refused = set[str]()
        async with self._changing:
            for name in sorted(route.wanted(), key=lambda name: (name != route.stable, name)):
                if route.generation < self._route.generation:  # another one was quicker
                    return
                try:
                    if name != route.stable:
                        self._faults.check(name)
                    await self._load(name, keep=route.wanted())
                except AdapterRefused:
                    if name == route.stable:
                        raise
                    refused.add(name)
            adopted = self._adopt(route, without=refused)
            assert adopted, "something that the route names was unloaded while it was to be followed"

    async def try_out(self, files: AdapterFiles) -> Pin:
        """Verify, load, generate one token; it stays until `abandon`, or for a while.

        It need not be published. The pin is the caller's to release. Raises what is wrong with it.
        """
        pin = Pin(self._in_flight, files.name)
        try:
            await self._undisturbed(self._try_out(files))
        except BaseException:
            pin.release()
            raise
        return pin

    async def _try_out(self, files: AdapterFiles) -> None:
        async with self._changing:
            await self._load(files.name, keep={files.name}, files=files)
            if files.name not in self._route.wanted():
                self._tried.add(files.name)
                self._keep_a_while(files.name)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: free what `try_out` loaded."""
        if name in self._tried:
            self._tried.discard(name)
            self._kept_until.pop(name, None)
        await self.retire()

    async def tend(self) -> None:
        """What is to be done now and then: tell the store what is needed here, and free the rest."""
        self._faults.forget_all_but(self.wanted)
        await self._leases.renew()
        if not self._changing.locked():  # else next time: whoever follows the route does not wait for a slow load
            await self.retire()

    async def retire(self) -> None:
        """Free all that nobody needs any more."""
        await self._undisturbed(self._retire())

    async def _retire(self) -> None:
        freed = False
        async with self._changing:
            while over := self._idle() - self._kept():  # asked anew each time: a request may pin one meanwhile
                await self._unload(min(over))
                freed = True
        if freed:
            await self._stock.tidy()

    # --- loads and unloads: the caller holds the lock -----------------------------------------------------

    async def _load(self, name: str, keep: AbstractSet[str], files: AdapterFiles | None = None) -> None:
        """`keep` must not make room for it. Without `files` it must have been published."""
        assert self._changing.locked(), "two loads at a time"
        if name in self._stock:
            return
        self._coming = name
        try:
            await self._make_room(keep)
            await self._leases.renew()  # before its files are looked for: from here on nobody deletes them
            files = files or await self._journal.adapter(name)
            if files is None:
                raise AdapterRefused(f"adapter {name} was never published, or its files were deleted")
            await self._stock.put(files)
        except AdapterRefused as refusal:
            self._faults.note(name, refusal)
            raise
        finally:
            self._coming = None
        self._faults.mended(name)

    async def _make_room(self, keep: AbstractSet[str]) -> None:
        while self._stock.full and (idle := self._idle() - keep):
            await self._unload(min(idle, key=lambda name: (name in self._tried, self._kept_until.get(name, 0.0), name)))
        if self._stock.full:
            raise NoRoom(
                f"all {self._stock.places} adapter places are in use by {sorted(self.loaded)}; "
                "wait for their requests to end or raise serving.adapter_places"
            )

    async def _unload(self, name: str) -> None:
        self._tried.discard(name)
        self._kept_until.pop(name, None)
        await self._stock.free(name)

    def _needed(self) -> set[str]:
        """What must stay: requests run on it, or the route names it."""
        return {*self._route.wanted(), *self.in_flight} - {BASE}

    def _idle(self) -> AbstractSet[str]:
        return self.loaded - self._needed()

    def _keep_a_while(self, name: str) -> None:
        self._kept_until[name] = self._clock() + self._idle_seconds

    def _kept(self) -> set[str]:
        now = self._clock()
        return {name for name, until in self._kept_until.items() if now < until}

    def _leased(self) -> frozenset[str]:
        """Whose published files this replica may have to fetch."""
        coming = () if self._coming is None else (self._coming,)
        return frozenset((*self._newest.wanted(), *self.loaded, *coming))

    async def _undisturbed(self, change: Coroutine[Any, Any, None]) -> None:
        """To its end even where its caller is cancelled: what is half loaded nobody would ever unload."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)
