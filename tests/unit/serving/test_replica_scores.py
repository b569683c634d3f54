"""Scoring a candidate that nobody has published: loaded for it, kept for a promotion, let go when it is abandoned."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving.adapters import WEIGHTS
from serving.contracts import AdapterFiles, Answer, Caller, Route
from serving.errors import AdapterRefused
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import flip_byte, write_adapter
from tests.fakes import FakeEngine, FakeJournal, logprob

ANSWERS = [Answer(prompt_token_ids=(1, 2), token_ids=(30, 31)), Answer(prompt_token_ids=(3,), token_ids=(32,))]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture
async def replica(engine: FakeEngine, journal: FakeJournal, tmp_path: Path) -> Replica:
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    await replica.start()
    return replica


@pytest.fixture
def candidate(tmp_path: Path) -> AdapterFiles:
    return write_adapter(tmp_path / "candidate", 1)


async def test_every_answer_is_scored_and_nobody_is_routed_to_the_candidate(
    replica: Replica, engine: FakeEngine, candidate: AdapterFiles
) -> None:
    scores = await replica.score(candidate, ANSWERS)
    assert scores.logprobs == ((logprob(30), logprob(31)), (logprob(32),))
    assert (scores.replica, scores.dtype) == ("one", "float32")
    answer = await replica.chat({"model": "policy", "messages": [{"role": "user", "content": "hi"}]}, Caller(app="a"))
    assert answer.adapter == "base"
    assert replica.status().in_flight == {}


async def test_a_scored_candidate_is_loaded_once_for_its_promotion(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, candidate: AdapterFiles
) -> None:
    await replica.score(candidate, ANSWERS)
    await replica.reconcile()  # a look at the route does not take it away
    journal.adapters[candidate.name] = candidate
    assert (await replica.prepare(candidate)).error is None
    await replica.flip(Route(generation=1, stable=candidate.name))
    assert [what for what, _ in engine.history].count("load") == 1


async def test_an_abandoned_candidate_is_let_go_when_its_scores_are_there(
    replica: Replica, engine: FakeEngine, candidate: AdapterFiles
) -> None:
    scoring = asyncio.create_task(replica.score(candidate, ANSWERS))
    while not engine.loaded:  # noqa: ASYNC110  the fake sets no event
        await asyncio.sleep(0)
    await replica.abandon(candidate.name)
    assert len((await scoring).logprobs) == 2  # the engine asserts that it was not taken away meanwhile
    await replica.abandon(candidate.name)
    assert engine.loaded == set()


async def test_a_spoiled_candidate_is_not_scored(replica: Replica, engine: FakeEngine, candidate: AdapterFiles) -> None:
    flip_byte(Path(candidate.directory) / WEIGHTS)
    with pytest.raises(AdapterRefused, match="does not hash"):
        await replica.score(candidate, ANSWERS)
    assert engine.loaded == set()
