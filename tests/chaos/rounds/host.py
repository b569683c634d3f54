"""All replicas of a run at once, as its Conductor reaches them: `service.fleet.Host`, as `serving/host.py` is on Ray Serve.

Whoever listens in the folder of sockets is a running replica. A broadcast passes over those that died, and one that starts
meanwhile reads the route by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.contracts import AdapterFiles, Answer, Ask, Prepared, ReplicaStatus, Route, Sampled, Scores
from serving.errors import AdapterRefused, HostAbsent, HostError
from tests.chaos.rounds import line

_SECONDS = 30.0  # of a replica's silence, after which it is stuck


class RemoteHost:
    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets

    async def prepare(self, files: AdapterFiles) -> list[Prepared]:
        answers: list[Prepared] = await self._broadcast("prepare", files)
        faults = [f"replica {answer.replica}: {answer.error}" for answer in answers if answer.error]
        if faults:
            raise HostError("; ".join(faults))
        if not answers:
            raise HostAbsent("no replica runs at the moment")
        return answers

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        return await self._one("score", files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        return await self._one("sample", name, files, asks, at_once)

    async def abandon(self, name: str) -> None:
        await self._broadcast("abandon", name)

    async def flip(self, route: Route) -> list[ReplicaStatus]:
        return await self._broadcast("flip", route)

    async def reached(self) -> list[ReplicaStatus]:
        answers: list[ReplicaStatus] = await self._broadcast("status")
        if not answers:
            raise HostAbsent("no replica runs at the moment")
        return answers

    async def _one(self, method: str, *arguments: Any) -> Any:
        """Of the first that is there. One that dies over it is not replaced by another: so it is on Ray Serve."""
        for socket in self._replicas():
            try:
                return await line.call(socket, method, *arguments, seconds=_SECONDS)
            except line.Absent:
                continue
            except line.Refused as refusal:
                if refusal.kind == AdapterRefused.__name__:
                    raise AdapterRefused(refusal.message) from refusal
                raise HostError(f"{method}: {refusal}") from refusal
            except (line.Ended, TimeoutError) as failure:
                raise HostError(f"{method}: {failure}") from failure
        raise HostAbsent("no replica runs at the moment")

    async def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        calls = [line.call(socket, method, *arguments, seconds=_SECONDS) for socket in self._replicas()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for failure in (answer for answer in answers if isinstance(answer, BaseException)):
            if not isinstance(failure, line.Absent | line.Ended):
                raise HostError(f"{method}: {failure}") from failure
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _replicas(self) -> list[Path]:
        return sorted(self._sockets.glob("replica-*"))
