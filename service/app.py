"""The composition root: `Settings` in, two Serve applications out. The one place where all rooms meet.

chat        at /v1   deployment Policy: engine, chat and feedback in each replica's process
operations  at /     deployment Conductor: rounds, adapters, preferences, health; owns the loop
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from service.api.auth import Doorman
from service.api.chat import chat_routes
from service.api.edge import application
from service.api.feedback import feedback_routes
from service.conductor import Conductor
from service.errors import NotFound
from service.settings import Settings
from service.store.store import Store
from serving.contracts import AdapterFiles, Completion, Route
from serving.deployment import policy_application
from serving.replica import Replica
from training.contracts import Fingerprints

MAX_CHAT_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Blueprint:
    """All that both applications are built from; small, and picklable for Ray."""

    settings: Settings
    store_url: str
    model: Path  # directory of the base model on every node
    fingerprints: Fingerprints
    use_gpu: bool


def chat(blueprint: Blueprint) -> serve.Application:
    """The application `chat`, to be run at `/v1`."""
    settings = blueprint.settings
    edge = ChatEdge(blueprint.store_url, settings.server.insecure_no_auth)
    return policy_application(str(blueprint.model), settings.serving, str(settings.cache), edge, gpu=blueprint.use_gpu)


def operations(blueprint: Blueprint) -> serve.Application:
    """The application `operations`, to be run at `/`."""
    conductor = serve.deployment(
        name="Conductor",
        num_replicas=1,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5,
    )(Conductor)
    return conductor.bind(
        blueprint.settings,
        blueprint.store_url,
        blueprint.model,
        blueprint.fingerprints,
        use_gpu=blueprint.use_gpu,
    )


class StoreJournal:
    """`serving.contracts.Journal` on the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def route(self) -> Route:
        return await self.store.route.read()

    async def adapter(self, name: str) -> AdapterFiles | None:
        try:
            adapter = await self.store.adapters.get(name)
        except NotFound:
            return None
        return AdapterFiles(name=adapter.name, directory=adapter.directory, manifest_sha256=adapter.manifest_sha256)

    async def record(self, completion: Completion) -> None:
        await self.store.completions.record(completion)

    async def close(self) -> None:
        await self.store.close()


@dataclass(frozen=True)
class ChatEdge:
    """`serving.contracts.Edge`: travels to each replica's process and opens the store there."""

    store_url: str
    insecure_no_auth: bool

    def journal(self) -> StoreJournal:
        return StoreJournal(Store(self.store_url))

    def http(self, replica: Replica, journal: Any) -> FastAPI:
        assert isinstance(journal, StoreJournal)
        doorman = Doorman(journal.store.keys, insecure=self.insecure_no_auth)
        app = application("Heliotrope chat", max_body_bytes=MAX_CHAT_BODY_BYTES)
        app.include_router(chat_routes(replica, doorman))
        app.include_router(feedback_routes(journal.store.feedback, doorman))
        return app
