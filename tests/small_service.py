"""The whole service in one process: its store, registry, loop and HTTP faces are real, engine and trainer are fakes.

Put together as `service/app.py` and `service/conductor.py` do, without Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi import FastAPI

from service.api.adapters import adapter_routes
from service.api.alarms import alarm_routes
from service.api.audit import audit_routes
from service.api.auth import Doorman
from service.api.chat import chat_routes
from service.api.edge import application
from service.api.evidence import evidence_routes
from service.api.exchange import exchange_routes
from service.api.feedback import feedback_routes
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
from service.contracts import Adapter, Role, Round, RoundBody
from service.depot import Depot
from service.dry_run import DryRuns
from service.inspecting import Inspector
from service.journal import StoreJournal
from service.keeping.erasing import Eraser
from service.limiting.limiter import Limiter
from service.metrics.http import CountsRequests
from service.metrics.scrape import Scrape
from service.readiness import of_replica, of_service
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from service.tokens import Tokens
from service.triggers.loop import Triggers
from service.votes import FeedbackBody, Rating
from serving.adapters import sha256_of
from serving.contracts import Caller
from serving.replica import Replica
from tests.adapter_files import FINGERPRINTS, WEIGHTS, write_adapter
from tests.fake_host import FakeHost
from tests.fake_trainer import Answer, FakeTrainer
from tests.fakes import FakeEngine

MAX_BODY_BYTES = 100_000
MAX_ADAPTER_BYTES = 300_000
MAX_IMPORT_BYTES = 1_000_000
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    412: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


@dataclass
class SmallService:
    """Two replicas of a fake engine, and everything around them."""

    store: Store
    settings: Settings
    engines: list[FakeEngine]
    host: FakeHost
    trainer: FakeTrainer
    registry: Registry
    rounds: Rounds

    @classmethod
    async def start(
        cls,
        store: Store,
        folder: Path,
        *scripts: Sequence[Answer],
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **training: Any,
    ) -> SmallService:
        """`scripts` are those of the trainer's attempts, `training` is a section of the settings, `sections` others."""
        given = {"state": folder, "training": {"min_pairs": 2} | training}
        others = dict(sections or {})
        others["gate"] = {"suites": ()} | dict(others.get("gate", {}))  # else each candidate sits a whole exam
        settings = Settings.model_validate(given | others)
        engines = [FakeEngine(tokens=2), FakeEngine(tokens=2)]
        replicas = [
            Replica(name, engine, StoreJournal(store), settings.cache / name, settings.serving)
            for name, engine in zip(("one", "two"), engines, strict=True)
        ]
        for replica in replicas:
            await replica.start()
        host, trainer = FakeHost(replicas), FakeTrainer(*scripts)
        registry, rounds = _conductor(store, host, trainer, settings)
        return cls(store, settings, engines, host, trainer, registry, rounds)

    def restart_conductor(self) -> None:
        """Another process takes over: all it knows is in the store, in the cluster and on disk."""
        self.registry, self.rounds = _conductor(self.store, self.host, self.trainer, self.settings)

    async def start_replica(self, name: str) -> None:
        """One replica more; it is there when it is ready."""
        engine = FakeEngine(tokens=2)
        replica = Replica(name, engine, StoreJournal(self.store), self.settings.cache / name, self.settings.serving)
        await replica.start()
        self.engines.append(engine)
        self.host.replicas[name] = replica

    async def poll(self) -> None:
        """Every replica reads the route row, as each does every second."""
        for replica in self.host.replicas.values():
            await replica.reconcile()

    @property
    def loaded(self) -> list[set[str]]:
        """What each engine holds."""
        return [engine.loaded for engine in self.engines]

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.store.secrets, self.settings.server.feedback_token_seconds)

    @property
    def depot(self) -> Depot:
        return Depot.of(self.settings)

    @property
    def triggers(self) -> Triggers:
        return Triggers(self.store, self.rounds, self.settings)

    @property
    def replica(self) -> Replica:
        return self.host.replicas["one"]

    async def publish(self, ordinal: int) -> Adapter:
        """An adapter that came from outside."""
        directory = self.settings.state / "adapters" / str(ordinal)
        files = write_adapter(directory, ordinal)
        adapter = Adapter(
            name=files.name,
            ordinal=ordinal,
            parent="base",
            round=None,
            weights_sha256=sha256_of(directory / WEIGHTS),
            manifest_sha256=files.manifest_sha256,
            directory=files.directory,
            pair_digest=None,
            verdict=None,
            created_at=datetime.now(UTC),
        )
        await self.store.adapters.publish(adapter, fence=None)
        return adapter

    async def like(self, *questions: str, better: int = 0, user: str | None = None) -> list[str]:
        """Ask each question for two answers, and rather have the first, or the `better` one. The completions' ids.

        Each is asked by a user of its own, or by this one.
        """

        async def ask(question: str) -> str:
            body = {"model": "policy", "n": 2, "messages": [{"role": "user", "content": question}]}
            id = (await self.replica.chat(body, Caller(app="shop"))).completion_id
            for choice in (0, 1):
                rating, voter = Rating.UP if choice == better else Rating.DOWN, user or f"who asks {question}"
                vote = FeedbackBody(completion_id=id, choice_index=choice, rating=rating, user=voter)
                await self.store.feedback.put("shop", vote)
            return id

        return await asyncio.gather(*(ask(question) for question in questions))

    async def thumb(self, question: str, rating: Rating, user: str | None = None) -> str:
        """Ask for one answer and vote on it; nothing else is said of that question. Returns the completion's id."""
        body = {"model": "policy", "messages": [{"role": "user", "content": question}]}
        id = (await self.replica.chat(body, Caller(app="shop"))).completion_id
        await self.store.feedback.put("shop", FeedbackBody(completion_id=id, rating=rating, user=user))
        return id

    async def round(self, **body: Any) -> Round:
        """A round, from its start to its end."""
        started = await self.ask_for_round(**body)
        return await self.finish(started)

    async def ask_for_round(self, **body: Any) -> Round:
        return (await self.rounds.start(RoundBody(**body), who="tess", idempotency_key=None))[0]

    async def finish(self, round: Round) -> Round:
        while await self.rounds.step():
            pass
        return await self.store.rounds.get(round.n)

    async def answers_by(self) -> set[str]:
        """Who answers now, on each replica."""
        body = {"model": "policy", "messages": [{"role": "user", "content": "who are you?"}]}
        return {(await replica.chat(body, Caller(app="shop"))).adapter for replica in self.host.replicas.values()}

    # --- the HTTP faces -----------------------------------------------------------------------------

    def chat_app(self, *, insecure: bool = False) -> FastAPI:
        doorman = Doorman(self.store.keys, insecure=insecure)
        app = application("chat", max_body_bytes=MAX_BODY_BYTES)
        app.add_middleware(CountsRequests, meter=self.replica.meter.http)
        app.include_router(health_routes(of_replica(self.replica, self.store, needs_store=False, fresh_seconds=0)))
        app.include_router(chat_routes(self.replica, doorman, Limiter(self.settings.limits)))
        app.include_router(feedback_routes(self.store.feedback, self.tokens, doorman, self.replica.meter))
        return app

    def operations_app(self, *, insecure: bool = False) -> FastAPI:
        doorman = Doorman(self.store.keys, insecure=insecure)
        larger = {"/ops/adapters": MAX_ADAPTER_BYTES, "/ops/preferences/import": MAX_IMPORT_BYTES}
        app = application("operations", max_body_bytes=MAX_BODY_BYTES, larger=larger)
        scrape = Scrape(self.store, self.host, self.settings.state)
        app.add_middleware(CountsRequests, meter=scrape.http)
        app.include_router(health_routes(of_service(self.store, self.host, fresh_seconds=0)))
        without_key = self.settings.server.metrics_without_key
        app.include_router(metrics_routes(scrape, doorman, without_key=without_key))
        app.include_router(alarm_routes(self.store.alarms, doorman))
        app.include_router(key_routes(self.store, doorman))
        app.include_router(status_routes(self.store, self.host, self.rounds, "tiny", doorman))
        inspector = Inspector(self.rounds.collector, self.store, self.settings)
        dry_runs = DryRuns(inspector, self.store, self.settings, self.settings.state / "model", use_gpu=False)
        app.include_router(round_routes(self.rounds, dry_runs, self.store, doorman))
        app.include_router(learning_routes(self.triggers, self.store, self.settings.canary, doorman))
        app.include_router(report_routes(inspector, doorman))
        app.include_router(
            adapter_routes(self.registry, self.rounds, self.store, door(self.settings, FINGERPRINTS), doorman)
        )
        overview = self.rounds.overview
        app.include_router(exchange_routes(self.store, self.settings.uploads, overview.bring_up_to_date, doorman))
        app.include_router(preference_routes(overview, self.store, doorman))
        app.include_router(audit_routes(self.store, doorman))
        app.include_router(lineage_routes(self.store, doorman))
        app.include_router(evidence_routes(self.store, self.settings.state / "model", doorman))
        app.include_router(user_routes(Eraser(self.store, self.rounds, self.depot.rounds), doorman))
        return app

    async def app(self, name: str = "shop") -> httpx.AsyncClient:
        return client(self.chat_app(), (await self.store.keys.issue(Role.APP, name))[1])

    async def operator(self, name: str = "tess") -> httpx.AsyncClient:
        return client(self.operations_app(), (await self.store.keys.issue(Role.OPERATOR, name))[1])


def _conductor(store: Store, host: FakeHost, trainer: FakeTrainer, settings: Settings) -> tuple[Registry, Rounds]:
    registry = Registry(store, host, Depot.of(settings).adapters, FINGERPRINTS, settings.serving.max_lora_rank)
    model = settings.state / "model"
    return registry, Rounds(store, trainer, registry, settings, model, FINGERPRINTS, use_gpu=False)


def client(app: FastAPI, key: str | None) -> httpx.AsyncClient:
    """What broke inside comes out as a 500, as it would on a socket."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://heliotrope", headers=headers)


class Refusal(NamedTuple):
    """What a program can tell from a refused call."""

    status: int
    code: str | None
    param: str | None = None


def refusal(answer: httpx.Response) -> Refusal:
    """Every one has OpenAI's shape, whoever refused: `{"error": {"message", "type", "param", "code"}}`."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == ERROR_TYPES[answer.status_code]
    return Refusal(answer.status_code, error["code"], error["param"])
