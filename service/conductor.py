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
from service.api.preferences import preference_routes
from service.api.rounds import round_routes
from service.api.status import status_routes
from service.candidates import door
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from serving.deployment import PolicyHost
from training.attempt import Attempts
from training.contracts import Fingerprints

MAX_IMPORT_BODY_BYTES = 64 << 20
MAX_ADAPTER_BODY_BYTES = 4 << 30  # rank 64 on all layers of a model of 70 billion parameters has about 3 GiB in float32


@serve.ingress()
class Conductor:
    """One replica. When it dies, Serve starts another, which finds everything in the store."""

    async def __init__(
        self, settings: Settings, store_url: str, model: Path, fingerprints: Fingerprints, *, use_gpu: bool
    ) -> None:
        logging.basicConfig(level=logging.WARNING)
        self._settings = settings
        self._store = Store(store_url)
        self._host = PolicyHost()
        self._registry = Registry(
            self._store, self._host, settings.adapters, fingerprints, settings.serving.max_lora_rank
        )
        self._rounds = Rounds(self._store, Attempts(), self._registry, settings, model, fingerprints, use_gpu=use_gpu)
        self._door = door(settings, fingerprints)
        self._loop = asyncio.create_task(self._rounds.run())

    async def __serve_build_asgi_app__(self) -> Any:
        settings, store = self._settings, self._store
        doorman = Doorman(store.keys, insecure=settings.server.insecure_no_auth)
        larger = {"/ops/adapters": MAX_ADAPTER_BODY_BYTES}
        app = application("Heliotrope operations", max_body_bytes=MAX_IMPORT_BODY_BYTES, larger=larger)
        app.include_router(status_routes(store, self._host, self._rounds, settings.model.name, doorman))
        app.include_router(round_routes(self._rounds, store, settings.training, doorman))
        app.include_router(adapter_routes(self._registry, self._rounds, store, self._door, doorman))
        app.include_router(preference_routes(self._rounds.collector, store, doorman))
        return app

    async def check_health(self) -> None:
        if self._loop.done():
            raise RuntimeError("the loop has ended") from self._loop.exception()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor may have failed half-way
            self._loop.cancel()
            await self._store.close()
