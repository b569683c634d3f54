"""All replicas of the policy at once, as the Conductor reaches them from another process of the same Ray cluster.

A broadcast makes a change of the route quick. It passes over dead replicas without a word and knows nothing of those
that come later, so whoever needs every replica compares its answers with the number that Serve says are running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.contracts import (
    AdapterFiles,
    Answer,
    Ask,
    Exposed,
    Prepared,
    Probed,
    ReplicaStatus,
    Roll,
    Route,
    Sampled,
    Scores,
)
from serving.controller import Controller
from serving.deployment import APPLICATION, DEPLOYMENT
from serving.errors import AdapterRefused, AdapterUnreachable, HostAbsent, HostError, NoRoom

LOAD_SECONDS = 120.0  # until every replica has loaded an adapter, or one has said what it says with it
WORD_SECONDS = 5.0  # for what a replica answers from memory; a silent one is stuck, and will be replaced
PROBE_SECONDS = 15.0  # for one token, of an engine that has none for users; longer than the replica itself waits
AGREE_SECONDS = 10.0  # until Serve's list of replicas and the broadcast's are the same, after one came or went
_LOOK_SECONDS = 0.2


class PolicyHost:
    """`service.registry.Host` on Ray Serve. One per process: it keeps a handle."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None
        self._running = Controller(WORD_SECONDS).running

    async def prepare(self, files: AdapterFiles) -> list[Prepared]:
        """Every running replica holds the adapter when this returns. Raises `HostError`, and then `abandon` it."""
        answers: list[Prepared] = []
        for _ in range(round(AGREE_SECONDS / _LOOK_SECONDS)):
            answers = await self._broadcast("prepare", files, seconds=LOAD_SECONDS)
            faults = [f"replica {a.replica}: {a.error}" for a in answers if a.error]
            if faults:
                raise HostError("; ".join(faults))
            if len(answers) >= await self._running():  # asked afterwards: one that starts now reads the route itself
                return answers
            await asyncio.sleep(_LOOK_SECONDS)  # those that hold it answer at once the next time
        raise HostError(f"{await self._running()} replicas run but only {len(answers)} answered")

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """What one replica says; it then holds the adapter. Raises what `_one` raises, and then `abandon` it."""
        return await self._one("score", files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """What one replica answers; with files it then holds the adapter. Raises what `_one` raises, and then `abandon` it."""
        return await self._one("sample", name, files, asks, at_once)

    async def abandon(self, name: str) -> None:
        await self._broadcast("abandon", name)

    async def flip(self, route: Route) -> list[ReplicaStatus]:
        """Every replica that hears of it. The others poll, so nothing is compared and no time is lost."""
        return await self._broadcast("flip", route)

    async def reached(self) -> list[ReplicaStatus]:
        """What those say whom a broadcast reaches: one that comes later reads the route itself. Serve's controller is
        not asked, which has much to do and takes longer than they do."""
        return await self._broadcast("status")

    async def status(self) -> list[ReplicaStatus]:
        """Raises `HostError` when a replica is silent, or none is there yet."""
        expected, answers = await asyncio.gather(self._running(), self._broadcast("status"))
        if len(answers) < expected:
            raise HostError(f"{expected} replicas run but only {len(answers)} answered")
        return answers

    async def roll(self) -> Roll:
        """Who answers, and why others do not. Raises `HostError` when none is there, or Serve cannot be asked."""
        running, said = await asyncio.gather(self._running(), self._each("status", seconds=WORD_SECONDS))
        answered = tuple(one for one in said if isinstance(one, ReplicaStatus))
        silent = [_why_silent(one) for one in said if isinstance(one, BaseException)]
        silent += ["it has come just now, and was not asked yet"] * (running - len(said))
        return Roll(answered=answered, silent=tuple(silent))

    async def metrics(self) -> list[Exposed]:
        """What the replicas count that answer. Raises `HostError` when one of them is silent."""
        return await self._broadcast("metrics")

    async def probe(self) -> list[Probed]:
        """Whether each replica still gets tokens out of its engine. Raises `HostError` when one is silent."""
        return await self._broadcast("probe", seconds=PROBE_SECONDS)

    async def _one(self, method: str, *arguments: Any) -> Any:
        """What one replica answers. Raises `AdapterRefused` where it refuses the adapter, and says why.

        Raises `HostAbsent` where none can be asked now, and `HostError` where the one that was asked died or is silent.
        """
        await self._running()
        try:
            response = getattr(self._replicas(), method).remote(*arguments)
            return await asyncio.wait_for(response, LOAD_SECONDS)
        except (RayError, RayServeException, TimeoutError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, AdapterRefused):
                raise AdapterRefused(str(cause)) from error
            if isinstance(cause, NoRoom | AdapterUnreachable):
                raise HostAbsent(f"{method}: {cause}") from error
            raise HostError(f"{method}: {type(error).__name__}: {error}") from error

    async def _broadcast(self, method: str, *arguments: Any, seconds: float = WORD_SECONDS) -> list[Any]:
        """What the living replicas answer. Raises `HostError` when one of them cannot or is silent."""
        try:
            response = self._replicas().broadcast(method, *arguments)
            answers = await response.results_async(timeout_s=seconds, return_exceptions=True)
            for failure in (one for one in answers if isinstance(one, Exception) and not _is_dead(one)):
                raise failure
        except (RayError, RayServeException, TimeoutError) as error:
            raise HostError(f"{method}: {type(error).__name__}: {error}") from error
        return [answer for answer in answers if not isinstance(answer, Exception)]

    async def _each(self, method: str, *, seconds: float) -> list[Any]:
        """What each replica answers, or the exception why it does not: one that is silent hides nobody else's answer."""
        response = self._replicas().broadcast(method)
        try:
            # Serve's public way to the results has none for us while one of them is missing.
            asked = await asyncio.wait_for(response._fetch_replica_results_async(), seconds)
        except (RayError, RayServeException, TimeoutError) as error:
            raise HostError(f"{method}: {type(error).__name__}: {error}") from error
        answers = (asyncio.wait_for(one.get_async(), seconds) for one in asked)
        return await asyncio.gather(*answers, return_exceptions=True)

    def _replicas(self) -> DeploymentHandle:
        if self._handle is None:
            self._handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return self._handle


def _why_silent(failure: BaseException) -> str:
    if isinstance(failure, RayActorError):
        return "its process has died, and another one takes its place"
    if isinstance(failure, TimeoutError):
        return f"no answer within {WORD_SECONDS:g} s"
    return f"{type(failure).__name__}: {failure}"


def _is_dead(failure: Exception) -> bool:
    """Its replica is gone; what the others answer counts."""
    return isinstance(failure, RayActorError)
