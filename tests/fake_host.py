"""What stands in for the cluster: several replicas in this process, written, never patched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

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
)  # fmt: skip
from serving.errors import AdapterUnreachable, HostAbsent, HostError, NoRoom, UnknownModel
from serving.replica import Replica
from tests.fakes import EngineDead


class FakeHost:
    """`service.registry.Host`: several replicas in this process."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = {replica.name: replica for replica in replicas}
        self.deaf: set[str] = set()  # replicas that no broadcast reaches
        self.gone = False  # no broadcast reaches anybody
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}  # prepare | flip | abandon -> what happens just then
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}

    async def prepare(self, files: AdapterFiles) -> list[Prepared]:
        await self._happen(self.before, "prepare")
        running = len(self.replicas)
        answers = await asyncio.gather(*(replica.prepare(files) for replica in self._listening()))
        await self._happen(self.after, "prepare")
        faults = [f"replica {answer.replica}: {answer.error}" for answer in answers if answer.error]
        if faults:
            raise HostError("; ".join(faults))
        if len(answers) < running:
            raise HostError(f"{running} replicas run but only {len(answers)} answered")
        return answers

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        await self._happen(self.before, "score")
        try:
            scores = await self._listening()[0].score(files, answers)
        except (AdapterUnreachable, NoRoom) as error:
            raise HostAbsent(f"score: {error}") from error
        except EngineDead as error:
            raise HostError(f"score: {error}") from error
        await self._happen(self.after, "score")
        return scores

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        await self._happen(self.before, "sample")
        try:
            return await self._listening()[0].sample(name, files, asks, at_once)
        except (AdapterUnreachable, NoRoom) as error:
            raise HostAbsent(f"sample: {error}") from error
        except (EngineDead, UnknownModel) as error:
            raise HostError(f"sample: {error}") from error

    async def abandon(self, name: str) -> None:
        await self._happen(self.before, "abandon")
        await asyncio.gather(*(replica.abandon(name) for replica in self._listening()))

    async def flip(self, route: Route) -> list[ReplicaStatus]:
        await self._happen(self.before, "flip")
        answers = await asyncio.gather(*(replica.flip(route) for replica in self._listening()))
        await self._happen(self.after, "flip")
        return answers

    async def reached(self) -> list[ReplicaStatus]:
        return await self.status()

    async def status(self) -> list[ReplicaStatus]:
        return [replica.status() for replica in self._listening()]

    async def roll(self) -> Roll:
        silent = tuple(f"{name} is deaf" for name in self.replicas if name in self.deaf)
        return Roll(answered=tuple(await self.status()), silent=silent)

    async def metrics(self) -> list[Exposed]:
        return [replica.metrics() for replica in self._listening()]

    async def probe(self) -> list[Probed]:
        return await asyncio.gather(*(replica.probe() for replica in self._listening()))

    def _listening(self) -> list[Replica]:
        if self.gone:
            raise HostAbsent("no replica answers")
        return [replica for name, replica in self.replicas.items() if name not in self.deaf]

    async def _happen(self, events: dict[str, Callable[[], Awaitable[None]]], call: str) -> None:
        if call in events:
            await events.pop(call)()
