"""Chat, vote, train, swap, roll back on tiny random models of each architecture: real vLLM, real training, a real store.

One process and no Ray: what Ray adds is tested on the seedling. Here the question is whether a model class goes all
the way: its tokens through the engine, its layers through the DPO step, its adapter back into the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.app import StoreJournal
from service.contracts import RoundBody, RoundState
from service.depot import Depot
from service.parity import compare
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings, load
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import (
    BASE,
    AdapterFiles,
    Answer,
    Ask,
    Caller,
    ChatAnswer,
    Prepared,
    ReplicaStatus,
    Route,
    Sampled,
    Scores,
)
from serving.engine import VllmEngine
from serving.errors import HostError
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.tiny_models import ARCHITECTURES, build
from training.contracts import AttemptStatus, Progress, RoundSpec
from training.fingerprints import fingerprints
from training.learn import learn
from training.samples import read_samples

QUESTIONS = [f"What is {a} plus {b}?" for a in range(3) for b in range(4)]
ANSWERS = 6
STOPS = ["a", "e", "t", "."]  # a random model seldom ends by itself, and answers that were cut off are left out


class OneReplica:
    """`service.registry.Host` for a replica in this process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def prepare(self, files: AdapterFiles) -> list[Prepared]:
        prepared = await self._replica.prepare(files)
        if prepared.error:
            raise HostError(prepared.error)
        return [prepared]

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        return await self._replica.score(files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        return await self._replica.sample(name, files, asks, at_once)

    async def abandon(self, name: str) -> None:
        await self._replica.abandon(name)

    async def flip(self, route: Route) -> list[ReplicaStatus]:
        return [await self._replica.flip(route)]

    async def reached(self) -> list[ReplicaStatus]:
        return [self._replica.status()]


class InThisProcess:
    """`service.attempts.Trainer` that trains at once, in a thread."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, int], AttemptStatus] = {}

    async def start(self, spec: RoundSpec) -> None:
        progress: list[Progress] = []
        report = await asyncio.to_thread(learn, spec, progress.append)
        self._done[spec.round, spec.attempt] = AttemptStatus(state="done", progress=tuple(progress), report=report)

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus:
        status = self._done.get((spec.round, spec.attempt), AttemptStatus(state="absent"))
        return status.model_copy(update={"progress": status.progress[since:]})

    async def stop(self, spec: RoundSpec) -> None:
        self._done.pop((spec.round, spec.attempt), None)


class House:
    """Everything of the service but Ray and HTTP."""

    def __init__(self, settings: Settings, model: Path, store: Store) -> None:
        self.store = store
        self.engine = VllmEngine(model, settings.serving)
        self.replica = Replica("one", self.engine, StoreJournal(store), settings.cache, ServingSettings())
        self.registry = Registry(store, OneReplica(self.replica), Depot.of(settings).adapters, fingerprints(model), 8)
        self.rounds = Rounds(store, InThisProcess(), self.registry, settings, model, fingerprints(model), use_gpu=False)

    async def chat(self, question: str, **body: Any) -> ChatAnswer:
        message = {"role": "user", "content": question}
        return await self.replica.chat({"model": "policy", "messages": [message], **body}, Caller(app="test"))

    async def converse(self) -> None:
        """Each question gets several answers; those early in the alphabet are liked, for want of a better taste."""
        for question in QUESTIONS:
            answer = await self.chat(question, n=ANSWERS, max_tokens=64, temperature=1.0, stop=STOPS)
            assert answer.body is not None
            choices = sorted(answer.body["choices"], key=lambda c: c["message"].get("content") or "")
            for place, choice in enumerate(choices):
                rating = Rating.UP if place < ANSWERS // 2 else Rating.DOWN
                body = FeedbackBody(
                    completion_id=answer.completion_id, choice_index=choice["index"], rating=rating, user=f"u{place}"
                )
                await self.store.feedback.put("test", body)

    async def run_round(self) -> None:
        await self.rounds.start(RoundBody(), who="test", idempotency_key=None)
        while await self.rounds.step():
            pass


@pytest.fixture(params=ARCHITECTURES)
async def house(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> AsyncIterator[House]:
    model = build(request.param, tmp_path / "model")
    settings = load(
        environment={},
        overrides={
            "state": str(tmp_path / "state"),
            "training": {"min_pairs": 4, "learning_rate": 1e-3, "held_out_share": 0.3},
            "gate": {"min_held_out_pairs": 1, "suites": []},
        },
    )
    house = House(settings, model, store)
    await house.replica.start()
    yield house
    house.engine.shutdown()


async def test_the_whole_way(house: House) -> None:
    await house.converse()
    await house.run_round()
    (round,) = await house.store.rounds.list()
    assert round.report is not None, round.reason
    assert round.report["step0_max_abs_logratio"] == 0  # invariant 1, exactly, whatever the architecture
    await agree(house, round.report)
    # A random model may generalise or not; the gate decides, and either is a result.
    assert round.state in (RoundState.PROMOTED, RoundState.REJECTED), round.reason
    if round.state is RoundState.REJECTED:
        assert round.verdict is not None
        must_hold = {"integrity", "loadable", "finite", "step0", "parity"}
        assert not must_hold & {c.name for c in round.verdict.checks if c.stops}, round.reason
        adapter = round.report["adapter_name"]
        await publish_anyway(house, round.n, adapter, round.report["adapter_directory"])
    route = await house.store.route.read()
    assert route.stable.startswith("policy-") and route.previous == BASE
    before = await house.chat(QUESTIONS[0], temperature=0, max_tokens=8)
    assert before.adapter == route.stable

    await house.registry.rollback(who="test")
    after = await house.chat(QUESTIONS[0], temperature=0, max_tokens=8)
    assert after.adapter == BASE
    assert house.replica.status().loaded == (route.stable,)


async def agree(house: House, report: dict[str, Any]) -> None:
    """The new adapter's log-probs in transformers are those in vLLM, whatever the gate says of it."""
    ours = read_samples(Path(report["samples"]))
    answers = [Answer(prompt_token_ids=each.prompt_token_ids, token_ids=each.token_ids) for each in ours]
    theirs = await house.registry.score(report["adapter_directory"], report["adapter_name"], answers)
    parity = compare(ours, theirs, report["dtype"])
    assert parity.tokens > 0
    assert parity.max_abs is not None and parity.max_abs < 1e-3, parity
    if house.replica.status().stable != report["adapter_name"]:
        await house.registry.abandon(report["adapter_name"])


async def publish_anyway(house: House, n: int, name: str, directory: str) -> None:
    """The gate turned it down, but the adapter itself is sound: it must still be one that vLLM loads and serves."""
    assert house.registry.fault(directory, name) is None
    from service.contracts import Adapter
    from serving.adapters import MANIFEST, sha256_of

    round = await house.store.rounds.get(n)
    assert round.report is not None
    await house.store.adapters.publish(
        Adapter(
            name=name, ordinal=int(name.split("-")[1]), parent=BASE, round=n,
            weights_sha256=round.report["adapter_digest"], manifest_sha256=sha256_of(Path(directory) / MANIFEST),
            directory=directory, pair_digest=round.pair_digest, verdict=round.verdict, created_at=round.updated_at,
        ),
        fence=None,
    )  # fmt: skip
    await house.registry.promote(name, who="test")
