"""A town on the seedling: its people chat and vote, rounds learn from that. In one process, without vLLM and Ray.

The store, the replica, matching, guards, quarantine, collecting, training, the gate and the registry are the real ones,
put together as `service/conductor.py` does; one replica in this process stands for the cluster. What the seedling says is
really sampled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.contracts import Round, RoundBody
from service.demo.traffic import Answer
from service.depot import Depot
from service.inspecting import Inspector
from service.journal import StoreJournal
from service.registry import Registry
from service.report.records import DataReport
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from service.votes import FeedbackBody
from serving.contracts import BASE, Ask, Caller
from serving.replica import Replica
from tests.e2e.seedling_engine import SeedlingEngine
from tests.fake_host import FakeHost
from training.contracts import AttemptStatus, Progress, RoundReport, RoundSpec
from training.corpus import Question, held_out
from training.fingerprints import fingerprints
from training.learn import learn

APP = "town"
SAMPLES = 4  # answers of a policy to each held-out question
AT_ONCE = 4096  # requests: the engine samples together what arrives together


class Resident(Protocol):
    """Whoever asks and votes."""

    user: str

    def asks(self) -> Sequence[Question]: ...

    def votes(self, answers: Sequence[Answer]) -> list[FeedbackBody]:
        """On the answers to all that they asked, `choices` to a question."""
        ...


class HereTrainer:
    """`service.attempts.Trainer` in this process: an attempt is a thread."""

    def __init__(self) -> None:
        self._attempts: dict[str, asyncio.Future[RoundReport]] = {}  # the attempt's `out` -> what it comes to

    async def start(self, spec: RoundSpec) -> None:
        self._attempts[spec.out] = asyncio.ensure_future(asyncio.to_thread(learn, spec, _unheard))

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus:
        """At its end, so that nobody asks in vain. What goes wrong is the test's to see."""
        if spec.out not in self._attempts:
            return AttemptStatus(state="absent")
        return AttemptStatus(state="done", report=await self._attempts[spec.out])

    async def stop(self, spec: RoundSpec) -> None:
        await self._attempts.pop(spec.out)


def _unheard(progress: Progress) -> None:
    """Nobody watches the curves."""


@dataclass
class Town:
    """One per test: what people said in another is not known here."""

    store: Store
    replica: Replica
    registry: Registry
    rounds: Rounds
    inspector: Inspector

    @classmethod
    async def found(cls, store: Store, folder: Path, model: Path, **sections: Any) -> Town:
        """`sections` are those of the settings; without a section `gate` the gate asks no suite."""
        given: dict[str, Any] = {"gate": {"suites": ()}} | sections
        given["training"] = {"trackers": ()} | given.get("training", {})
        given["serving"] = {"max_requests": AT_ONCE, "max_waiting": AT_ONCE}
        settings = Settings.model_validate({"state": folder, **given})
        prints = fingerprints(model)
        replica = Replica("one", SeedlingEngine(model), StoreJournal(store), settings.cache / "one", settings.serving)
        await replica.start()
        registry = Registry(
            store, FakeHost([replica]), Depot.of(settings).adapters, prints, settings.serving.max_lora_rank
        )
        rounds = Rounds(store, HereTrainer(), registry, settings, model, prints, use_gpu=False)
        return cls(store, replica, registry, rounds, Inspector(rounds.collector, store, settings))

    async def live(self, people: Sequence[Resident], *, choices: int, seed: int = 0) -> int:
        """Everybody asks, and then votes on the answers; how many votes that were. All of them are durable."""
        asked = [(person, question) for person in people for question in person.asks()]
        answered = await asyncio.gather(
            *(self._ask(person.user, question, choices, seed + n) for n, (person, question) in enumerate(asked))
        )
        of_user: dict[str, list[Answer]] = {person.user: [] for person in people}
        for (person, _), answers in zip(asked, answered, strict=True):
            of_user[person.user] += answers
        votes = [vote for person in people for vote in person.votes(of_user[person.user])]
        random.Random(seed).shuffle(votes)  # people vote all at the same time
        await asyncio.gather(*(self.store.feedback.put(APP, vote) for vote in votes))
        return len(votes)

    async def _ask(self, user: str, question: Question, choices: int, seed: int) -> list[Answer]:
        body = {
            "model": BASE,
            "messages": [{"role": "user", "content": question.prompt}],
            "n": choices,
            "user": user,
            "seed": seed,
        }
        said = await self.replica.chat(body, Caller(app=APP))
        assert said.body is not None
        texts = [choice["message"]["content"] for choice in said.body["choices"]]
        return [Answer(question, said.completion_id, index, text, said.adapter) for index, text in enumerate(texts)]

    async def round(self, **body: Any) -> Round:
        """From its start to its end, whatever the gate says."""
        started, _ = await self.rounds.start(RoundBody(**body), who="tess", idempotency_key=None)
        while await self.rounds.step():
            pass
        return await self.store.rounds.get(started.n)

    async def report(self) -> DataReport:
        return await self.inspector.report()

    async def says(self, round: Round | None = None) -> list[Answer]:
        """Sampled answers to the held-out questions by what that round trained, promoted or not; None: by the base."""
        name, directory = BASE, None
        if round is not None:
            report = RoundReport.model_validate(round.report)
            name, directory = report.adapter_name, report.adapter_directory
        asks = [
            Ask(messages=({"role": "user", "content": question.prompt},), max_tokens=48, temperature=1.0, seed=seed)
            for seed in range(SAMPLES)
            for question in held_out()
        ]
        found = await self.registry.sample(name, directory, asks, AT_ONCE)
        questions = [question for _ in range(SAMPLES) for question in held_out()]
        return [Answer(q, "", 0, said.text, name) for q, said in zip(questions, found.answers, strict=True)]
