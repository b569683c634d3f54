"""Ray Serve around a replica: the deployment `Policy`. `host.py` is the Conductor's way to all of its replicas.

A replica is HTTP server and engine in one process: no hop per token. The route row is the truth about who
answers; a broadcast makes a change quick, polling in each replica makes it certain. Serve's own `user_config` is not
used: a replica that takes one leaves the routing set while it does.

Serve's queue is not used either: it is without bound or without a word. `desk.py` admits and refuses, so all that
arrives is let through to it. A replica that can no longer answer ends its own process; another takes its place and
loads what the route names before a request reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig

from serving import heap, machine
from serving.adapters import require_base
from serving.contracts import (
    AdapterFiles,
    Answer,
    Ask,
    Base,
    Exposed,
    Prepared,
    Probed,
    ReplicaStatus,
    Route,
    Sampled,
    Scores,
)
from serving.errors import BaseRefused
from serving.ports import Edge, Engine
from serving.settings import ServingSettings
from serving.watchdog import Watchdog, end_process

APPLICATION = "chat"
DEPLOYMENT = "Policy"
ENGINE_LOOK_SECONDS = 0.5
LAST_WORDS_SECONDS = 1.0  # that a replica with a dead engine has to acknowledge votes and record what failed
A_LITTLE = 0.001  # of a resource that only says what a node is for: as many may ask for it as like
# Ray's access log is a line in a file for each request, which costs as much as a refusal; `/metrics` counts them all.
QUIET = {"log_level": "WARNING", "enable_access_log": False}
ASKED_AT_ONCE = 16  # times what one replica works on and lets wait: votes, refusals and questions of the Conductor

MakeEngine = Callable[[str, ServingSettings], Engine]  # the base model's directory; called in the replica's process

log = logging.getLogger(__name__)


@serve.deployment(name=DEPLOYMENT)
@serve.ingress()
class Policy:
    """One replica: an engine, the routing around it, and the chat API in front of it."""

    async def __init__(
        self, model: str, base: Base, settings: ServingSettings, cache: str, edge: Edge, make_engine: MakeEngine
    ) -> None:
        from serving.replica import Replica

        logging.basicConfig(level=logging.WARNING)
        self._edge = edge
        self._journal = edge.journal()
        self._engine = started(make_engine, model, settings, base)
        self._replica = Replica(
            serve.get_replica_context().replica_id.unique_id,
            self._engine,
            self._journal,
            Path(cache),
            settings,
        )
        await self._replica.start()
        self._watchdog = Watchdog(settings.stuck_seconds)
        self._watchdog.start(asyncio.get_running_loop())
        loops = (self._follow_route(settings.route_poll_seconds), self._watch_engine())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def __serve_build_asgi_app__(self) -> Any:
        app = self._edge.http(self._replica, self._journal)
        heap.freeze()
        return app

    async def prepare(self, files: AdapterFiles) -> Prepared:
        return await self._replica.prepare(files)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        return await self._replica.score(files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        return await self._replica.sample(name, files, asks, at_once)

    async def abandon(self, name: str) -> None:
        await self._replica.abandon(name)

    async def flip(self, route: Route) -> ReplicaStatus:
        return await self._replica.flip(route)

    async def status(self) -> ReplicaStatus:
        return self._replica.status()

    async def metrics(self) -> Exposed:
        return self._replica.metrics()

    async def probe(self) -> Probed:
        return await self._replica.probe()

    async def check_health(self) -> None:
        """Asked by Serve, which starts another replica when it raises. A loop that is stuck would never get to it."""
        for loop in self._loops:
            if loop.done():
                raise RuntimeError("a task that each replica needs has ended") from loop.exception()
        await self._replica.check_health()

    async def _follow_route(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._replica.reconcile()

    async def _watch_engine(self) -> None:
        """Serve asks a few times before it believes, and a dead engine refuses so quickly that most requests would come
        to this replica meanwhile."""
        while True:
            await asyncio.sleep(ENGINE_LOOK_SECONDS)
            try:
                await self._replica.check_health()
            except Exception:
                log.critical("the engine is dead: this replica ends", exc_info=True)
                await asyncio.sleep(LAST_WORDS_SECONDS)
                end_process()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor may have failed half-way
            self._watchdog.stop()
            for loop in self._loops:
                loop.cancel()
            await self._replica.close()
            self._engine.shutdown()
            await self._journal.close()


def started(make_engine: MakeEngine, model: str, settings: ServingSettings, base: Base) -> Engine:
    """An engine on this node's files. Raises `BaseRefused` where they are not the `base` that other nodes have."""
    engine = make_engine(model, settings)
    try:
        require_base(Base(engine.base_fingerprint, engine.tokenizer_fingerprint), base, model)
    except BaseRefused:
        engine.shutdown()
        raise
    return engine


def vllm(model: str, settings: ServingSettings) -> Engine:
    """The engine of every real deployment. Imported here: only a replica's process pays for vLLM."""
    if not ray.get_gpu_ids():
        # Read where torch is loaded, which is now. Ray itself says one thread.
        os.environ.update(machine.thread_variables(settings, machine.Machine.here()))
    from serving.engine import VllmEngine

    return VllmEngine(Path(model), settings)


def policy_application(
    model: str,
    base: Base,
    settings: ServingSettings,
    cache: str,
    edge: Edge,
    *,
    gpu: bool,
    engine: MakeEngine = vllm,
    environment: Mapping[str, str] = {},
) -> serve.Application:
    """The Serve application `chat`, ready for `serve.run`. `base`: of the model on every node. `environment`: what replicas need to fetch adapters."""
    return Policy.options(
        **scaling(settings),
        max_ongoing_requests=ASKED_AT_ONCE * (settings.max_requests + settings.max_waiting),
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": 1 if gpu else 0,
            "resources": {} if settings.node_resource is None else {settings.node_resource: A_LITTLE},
            "runtime_env": {"env_vars": {**environment, **machine.environment(settings, cache, gpu=gpu)}},
        },
        logging_config=QUIET,
        health_check_period_s=2,
        health_check_timeout_s=settings.stuck_seconds,
        graceful_shutdown_timeout_s=settings.longest_drain_seconds,
    ).bind(model, base, settings, cache, edge, engine)


def scaling(settings: ServingSettings) -> dict[str, Any]:
    """A fixed number of replicas, or one that follows the requests.

    An engine works on a batch at hardly more than the price of one request, so another is worth its start only when
    this one's batch is nearly full. A start takes an engine's load and adapters, half a minute and more: up soon, down late.
    """
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=0.7 * settings.max_requests,
            metrics_interval_s=2,
            look_back_period_s=10,  # long enough for one burst of short answers not to count
            upscale_delay_s=5,
            downscale_delay_s=600,
        )
    }
