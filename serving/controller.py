"""Serve's controller, and the one thing it is asked: how many replicas of the policy run.

`serve.status` would say so too, but builds Serve's whole configuration anew from the answer, with classes pickled by
value: some 35 ms of the process that asks, in which it does little else. So the controller is asked as Serve's dashboard
asks it, and one number is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from serving.deployment import APPLICATION, DEPLOYMENT
from serving.errors import HostAbsent

_RUNNING = "RUNNING"


def _by_name() -> Any:
    return ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)


class Controller:
    """One per process: it keeps a handle. It runs on the head of the Ray cluster, which may be away."""

    def __init__(self, patience_seconds: float, find: Callable[[], Any] = _by_name) -> None:
        """`find` gives the actor's handle, and blocks meanwhile; raises `ValueError` where there is none."""
        self._patience_seconds = patience_seconds
        self._find = find
        self._finding: asyncio.Task[Any] | None = None

    async def running(self) -> int:
        """Replicas that take requests. Raises `HostAbsent` when there is none, or when the controller is silent."""
        deployments = (await self._details())["applications"].get(APPLICATION, {}).get("deployments", {})
        if DEPLOYMENT not in deployments:
            raise HostAbsent("no replica runs yet")
        running = sum(replica["state"] == _RUNNING for replica in deployments[DEPLOYMENT]["replicas"])
        if running == 0:
            raise HostAbsent("no replica runs at the moment")
        return running

    async def _details(self) -> Mapping[str, Any]:
        """In the shape of `ray.serve.schema.ServeInstanceDetails`."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                return await (await self._found()).get_serve_instance_details.remote()
        except (RayError, ValueError, TimeoutError) as error:
            if isinstance(error, ActorDiedError):
                self._finding = None  # another may come
            raise HostAbsent(
                f"Serve's controller does not say which replicas run ({type(error).__name__}): the head of the Ray "
                "cluster is away or busy"
            ) from error

    async def _found(self) -> Any:
        """Looked for in a thread, which waits as long as the head is silent: only one at a time, so that there is still
        one for everything else."""
        failed = self._finding is not None and self._finding.done() and self._finding.exception() is not None
        if self._finding is None or failed:
            self._finding = asyncio.create_task(asyncio.to_thread(self._find))
        return await asyncio.shield(self._finding)
