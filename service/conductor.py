"""The deployment `Conductor`: the operators' HTTP face and the loop behind it, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

from ray import serve

from service.api.adapters import adapter_routes
from service.api.auth import Doorman
from service.api.edge import application
from service.api.exchange import exchange_routes
from service.api.preferences import preference_routes
from service.api.report import report_routes
from service.api.rounds import round_routes
from service.api.status import status_routes
from service.api.users import user_routes
from service.candidates import door
from service.inspecting import Inspector
from service.keeping.erasing import Eraser
from service.keeping.redaction import load
from service.keeping.retention import Sweeper
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from serving.deployment import PolicyHost
from training.attempt import Attempts
from training.contracts import Fingerprints

MAX_BODY_BYTES = 1 << 20
MAX_IMPORT_BODY_BYTES = 64 << 30  # it goes to the disk as it comes
MAX_ADAPTER_BODY_BYTES = 4 << 30  # rank 64 on all layers of a model of 70 billion parameters has about 3 GiB in float32


@serve.ingress()
class Conductor:
    """One replica. When it dies, Serve starts another, which finds everything in the store."""

    async def __init__(
        self, settings: Settings, store_url: str, model: Path, fingerprints: Fingerprints, *, use_gpu: bool
    ) -> None:
        logging.basicConfig(level=logging.WARNING)
        self._settings = settings
        self._store = Store(store_url, load(settings.store.redact))
        self._host = PolicyHost()
        self._registry = Registry(
            self._store, self._host, settings.adapters, fingerprints, settings.serving.max_lora_rank
        )
        self._rounds = Rounds(self._store, Attempts(), self._registry, settings, model, fingerprints, use_gpu=use_gpu)
        self._door = door(settings, fingerprints)
        sweeper = Sweeper(self._store, settings.retention, settings.rounds)
        loops = (self._rounds.run(), self._rounds.overview.run(), sweeper.run())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def __serve_build_asgi_app__(self) -> Any:
        settings, store = self._settings, self._store
        doorman = Doorman(store.keys, insecure=settings.server.insecure_no_auth)
        larger = {"/ops/adapters": MAX_ADAPTER_BODY_BYTES, "/ops/preferences/import": MAX_IMPORT_BODY_BYTES}
        app = application("Heliotrope operations", max_body_bytes=MAX_BODY_BYTES, larger=larger)
        app.include_router(status_routes(store, self._host, self._rounds, settings.model.name, doorman))
        inspector = Inspector(self._rounds.collector, store, settings)
        app.include_router(round_routes(self._rounds, inspector, store, settings.training, doorman))
        app.include_router(report_routes(inspector, doorman))
        app.include_router(adapter_routes(self._registry, self._rounds, store, self._door, doorman))
        overview = self._rounds.overview
        app.include_router(exchange_routes(store, settings.uploads, overview.bring_up_to_date, doorman))
        app.include_router(preference_routes(overview, store, doorman))
        app.include_router(user_routes(Eraser(store, self._rounds, settings.rounds), doorman))
        return app

    async def check_health(self) -> None:
        for loop in self._loops:
            if loop.done():
                raise RuntimeError("a loop has ended") from loop.exception()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor may have failed half-way
            for loop in self._loops:
                loop.cancel()
            await self._store.close()
