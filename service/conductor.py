"""The deployment `Conductor`: the operators' HTTP face and the loop behind it, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

from ray import serve

from service.alarms.delivery import Postman
from service.alarms.watch import Lookout
from service.api.adapters import adapter_routes
from service.api.alarms import alarm_routes
from service.api.audit import audit_routes
from service.api.auth import Doorman
from service.api.edge import application
from service.api.evidence import evidence_routes
from service.api.exchange import exchange_routes
from service.api.health import health_routes
from service.api.keys import key_routes
from service.api.learning import learning_routes
from service.api.lineage import lineage_routes
from service.api.metrics import metrics_routes
from service.api.preferences import preference_routes
from service.api.report import report_routes
from service.api.rounds import round_routes
from service.api.status import status_routes
from service.api.users import user_routes
from service.candidates import door
from service.depot import Depot
from service.dry_run import DryRuns
from service.inspecting import Inspector
from service.keeping.erasing import Eraser
from service.keeping.redaction import load
from service.keeping.retention import Sweeper
from service.metrics.http import CountsRequests
from service.metrics.scrape import Scrape
from service.readiness import of_service
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from service.triggers.loop import Triggers
from serving import heap
from serving.host import PolicyHost
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
        self._model = model
        self._store = Store(store_url, load(settings.store.redact))
        self._host = PolicyHost()
        self._depot = Depot.of(settings)
        self._registry = Registry(
            self._store, self._host, self._depot.adapters, fingerprints, settings.serving.max_lora_rank
        )
        self._rounds = Rounds(self._store, Attempts(), self._registry, settings, model, fingerprints, use_gpu=use_gpu)
        self._triggers = Triggers(self._store, self._rounds, settings)
        self._inspector = Inspector(self._rounds.collector, self._store, settings)
        self._dry_runs = DryRuns(self._inspector, self._store, settings, model, use_gpu)
        self._door = door(settings, fingerprints)
        sweeper = Sweeper(self._store, settings.retention, self._depot.rounds, self._depot.adapters)
        self._scrape = Scrape(self._store, self._host, settings.state)
        postman = Postman(self._store, settings.alarms)
        lookout = Lookout(self._store, self._host, settings.alarms, settings.state)
        watching = (sweeper.run(), postman.run(), lookout.run(), self._scrape.refusals.run())
        loops = (self._rounds.run(), self._rounds.overview.run(), self._triggers.run(), *watching)
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def __serve_build_asgi_app__(self) -> Any:
        settings, store = self._settings, self._store
        doorman = Doorman(store.keys, insecure=settings.server.insecure_no_auth)
        larger = {"/ops/adapters": MAX_ADAPTER_BODY_BYTES, "/ops/preferences/import": MAX_IMPORT_BODY_BYTES}
        app = application("Heliotrope operations", max_body_bytes=MAX_BODY_BYTES, larger=larger)
        app.add_middleware(CountsRequests, meter=self._scrape.http)
        app.include_router(health_routes(of_service(store, self._host)))
        app.include_router(metrics_routes(self._scrape, doorman, without_key=settings.server.metrics_without_key))
        app.include_router(alarm_routes(store.alarms, doorman))
        app.include_router(key_routes(store, doorman))
        app.include_router(status_routes(store, self._host, self._rounds, settings.model.name, doorman))
        app.include_router(round_routes(self._rounds, self._dry_runs, store, doorman))
        app.include_router(learning_routes(self._triggers, store, settings.canary, doorman))
        app.include_router(report_routes(self._inspector, doorman))
        app.include_router(adapter_routes(self._registry, self._rounds, store, self._door, doorman))
        overview = self._rounds.overview
        app.include_router(exchange_routes(store, settings.uploads, overview.bring_up_to_date, doorman))
        app.include_router(preference_routes(overview, store, doorman))
        app.include_router(audit_routes(store, doorman))
        app.include_router(lineage_routes(store, doorman))
        app.include_router(evidence_routes(store, self._model, doorman))
        app.include_router(user_routes(Eraser(store, self._rounds, self._depot.rounds), doorman))
        heap.freeze()
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
