"""The composition root: `Settings` in, two Serve applications out. The one place where all rooms meet.

chat        at /v1   deployment Policy: engine, chat and feedback in each replica's process
operations  at /     deployment Conductor: rounds, adapters, preferences, health; owns the loop
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from service.api.auth import Doorman
from service.api.chat import chat_routes
from service.api.cors import VotesFrom
from service.api.edge import application
from service.api.feedback import feedback_routes
from service.api.health import health_routes
from service.conductor import Conductor
from service.journal import StoreJournal
from service.keeping.redaction import load
from service.limiting.limiter import Limiter
from service.limiting.settings import NO_LIMITS, LimitSettings
from service.metrics.http import CountsRequests
from service.readiness import of_replica
from service.settings import ServerSettings, Settings, StoreSettings
from service.store.store import Store
from service.tokens import Tokens
from serving.contracts import Base
from serving.deployment import QUIET, MakeEngine, policy_application, vllm
from serving.replica import Replica
from training.contracts import Fingerprints
from training.nodes import a_little_of

MAX_CHAT_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Blueprint:
    """All that both applications are built from; small, and picklable for Ray."""

    settings: Settings
    store_url: str
    model: Path  # directory of the base model on every node
    fingerprints: Fingerprints
    use_gpu: bool
    engine: MakeEngine = vllm


def chat(blueprint: Blueprint) -> serve.Application:
    """The application `chat`, to be run at `/v1`."""
    settings = blueprint.settings
    edge = ChatEdge(blueprint.store_url, settings.server, settings.store, settings.limits, settings.serving.replicas)
    return policy_application(
        str(blueprint.model),
        Base(blueprint.fingerprints.base_model, blueprint.fingerprints.tokenizer),
        settings.serving,
        str(settings.cache),
        edge,
        gpu=blueprint.use_gpu,
        engine=blueprint.engine,
        environment=settings.artifacts.environment,
    )


def operations(blueprint: Blueprint) -> serve.Application:
    """The application `operations`, to be run at `/`, on a node that answers: the head holds nothing of ours, and a node
    that learns may go after each round. What the Conductor starts, training too, has its environment."""
    environment = blueprint.settings.artifacts.environment
    resources = a_little_of(blueprint.settings.serving.node_resource)
    conductor = serve.deployment(
        name="Conductor",
        num_replicas=1,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0, "resources": resources}
        | ({"runtime_env": {"env_vars": environment}} if environment else {}),
        logging_config=QUIET,
        health_check_period_s=5,
    )(Conductor)
    return conductor.bind(
        blueprint.settings,
        blueprint.store_url,
        blueprint.model,
        blueprint.fingerprints,
        use_gpu=blueprint.use_gpu,
    )


@dataclass(frozen=True)
class ChatEdge:
    """`serving.contracts.Edge`: travels to each replica's process and opens the store there."""

    store_url: str
    server: ServerSettings
    store: StoreSettings
    limits: LimitSettings = NO_LIMITS
    replicas: int = 1  # that share each key's limits

    def journal(self) -> StoreJournal:
        return StoreJournal(Store(self.store_url, load(self.store.redact)), self.store.without_store)

    def http(self, replica: Replica, journal: Any) -> FastAPI:
        assert isinstance(journal, StoreJournal)
        store = journal.store
        doorman = Doorman(store.keys, insecure=self.server.insecure_no_auth)
        tokens = Tokens(store.secrets, self.server.feedback_token_seconds)
        pages = partial(VotesFrom, origins=self.server.cors_origins)
        app = application("Heliotrope chat", max_body_bytes=MAX_CHAT_BODY_BYTES, outermost=pages)
        app.add_middleware(CountsRequests, meter=replica.meter.http)
        app.include_router(health_routes(of_replica(replica, store, needs_store=self.store.without_store == "refuse")))
        app.include_router(chat_routes(replica, doorman, Limiter(self.limits, self.replicas)))
        app.include_router(feedback_routes(store.feedback, tokens, doorman, replica.meter))
        return app
