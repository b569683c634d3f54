"""Ray Serve around a replica: the deployment `Policy`, and the way the Conductor reaches all of its replicas.

A replica is HTTP server and engine in one process: no hop per token. The route row is the truth about who
answers; `PolicyHost` makes a change quick by broadcast, polling in each replica makes it certain. Serve's own
`user_config` is not used: a replica that takes one leaves the routing set while it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.contracts import AdapterFiles, Answer, Edge, Prepared, ReplicaStatus, Route, Scores
from serving.errors import HostAbsent, HostError
from serving.settings import ServingSettings

APPLICATION = "chat"
DEPLOYMENT = "Policy"

log = logging.getLogger(__name__)


@serve.deployment(name=DEPLOYMENT)
@serve.ingress()
class Policy:
    """One replica: an engine, the routing around it, and the chat API in front of it."""

    async def __init__(self, model: str, settings: ServingSettings, cache: str, edge: Edge) -> None:
        # Imported here: only a replica's process pays for vLLM, not whoever reads this file.
        from serving.engine import VllmEngine
        from serving.replica import Replica

        logging.basicConfig(level=logging.WARNING)
        self._edge = edge
        self._journal = edge.journal()
        self._engine = VllmEngine(Path(model), settings)
        self._replica = Replica(
            serve.get_replica_context().replica_id.unique_id,
            self._engine,
            self._journal,
            Path(cache),
            settings,
        )
        await self._replica.start()
        self._poll = asyncio.create_task(self._follow_route(settings.route_poll_seconds))

    async def __serve_build_asgi_app__(self) -> Any:
        return self._edge.http(self._replica, self._journal)

    async def prepare(self, name: str) -> Prepared:
        return await self._replica.prepare(name)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        return await self._replica.score(files, answers)

    async def abandon(self, name: str) -> None:
        await self._replica.abandon(name)

    async def flip(self, route: Route) -> ReplicaStatus:
        return await self._replica.flip(route)

    async def status(self) -> ReplicaStatus:
        return self._replica.status()

    async def check_health(self) -> None:
        if self._poll.done():
            raise RuntimeError("the task that follows the route has ended")
        await self._replica.check_health()

    async def _follow_route(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._replica.reconcile()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the constructor may have failed half-way
            self._poll.cancel()
            self._engine.shutdown()
            await self._journal.close()


def policy_application(
    model: str, settings: ServingSettings, cache: str, edge: Edge, *, gpu: bool
) -> serve.Application:
    """The Serve application `chat`, ready for `serve.run`."""
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not gpu:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else every engine of a machine binds the same cores
    return Policy.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_requests * 2,  # those the engine works on, and as many that vote or wait
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": 1 if gpu else 0,
            "runtime_env": {"env_vars": environment},
        },
        health_check_period_s=5,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    ).bind(model, settings, cache, edge)


class PolicyHost:
    """All replicas of the policy at once, seen from another process of the same Ray cluster."""

    def __init__(self, timeout_seconds: float = 120.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._handle: DeploymentHandle | None = None

    async def prepare(self, name: str) -> list[Prepared]:
        """Every running replica holds the adapter when this returns. Raises `HostError`, and then `abandon` it."""
        answers: list[Prepared] = await self._all("prepare", name)
        faults = [f"replica {a.replica}: {a.error}" for a in answers if a.error]
        if faults:
            raise HostError("; ".join(faults))
        return answers

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """What one replica says; it then holds the adapter. Raises `HostError`, and then `abandon` it."""
        await self._running()
        try:
            response = self._replicas().score.remote(files, answers)
            return await asyncio.wait_for(response, self._timeout_seconds)  # pyright: ignore[reportArgumentType]
        except (RayError, RayServeException, TimeoutError) as error:
            raise HostError(f"score: {type(error).__name__}: {error}") from error

    async def abandon(self, name: str) -> None:
        await self._broadcast("abandon", name)

    async def flip(self, route: Route) -> list[ReplicaStatus]:
        return await self._all("flip", route)

    async def status(self) -> list[ReplicaStatus]:
        """Raises `HostError` when a replica is silent, or none is there yet."""
        return await self._all("status")

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of every running replica; a broadcast passes over the dead ones without a word."""
        expected = await self._running()
        answers = await self._broadcast(method, *arguments)
        if len(answers) < expected:
            raise HostError(f"{expected} replicas run but only {len(answers)} answered")
        return answers

    async def _running(self) -> int:
        overview = await asyncio.to_thread(serve.status)
        application = overview.applications.get(APPLICATION)
        if application is None or DEPLOYMENT not in application.deployments:
            raise HostAbsent("no replica runs yet")
        running = int(application.deployments[DEPLOYMENT].replica_states.get("RUNNING", 0))  # type: ignore[call-overload]
        if running == 0:
            raise HostAbsent("no replica runs at the moment")
        return running

    async def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        try:
            response = self._replicas().broadcast(method, *arguments)
            return list(await response.results_async(timeout_s=self._timeout_seconds))
        except (RayError, RayServeException, TimeoutError) as error:
            raise HostError(f"{method}: {type(error).__name__}: {error}") from error

    def _replicas(self) -> DeploymentHandle:
        if self._handle is None:
            self._handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return self._handle
