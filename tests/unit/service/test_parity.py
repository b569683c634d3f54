"""Serving's log-probs against training's: the distance, and what becomes of a candidate that is too far off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from service.contracts import RoundState
from service.errors import Unavailable
from service.parity import compare
from service.store.store import Store
from serving.contracts import BASE, Scores
from tests.fake_trainer import Done, evaluation
from tests.fakes import Killed
from tests.small_service import SmallService
from training.samples import ScoredAnswer

QUESTIONS = ["first question", "second question"]


def _scores(*logprobs: tuple[float, ...]) -> Scores:
    return Scores(replica="one", dtype="bfloat16", logprobs=logprobs)


def _answer(*logprobs: float) -> ScoredAnswer:
    return ScoredAnswer((1,), tuple(range(len(logprobs))), logprobs)


def test_the_distance_is_taken_over_all_tokens_of_all_answers() -> None:
    parity = compare([_answer(-1, -2), _answer(-3)], _scores((-1.5, -2), (-2.75,)), "float32")
    assert (parity.samples, parity.tokens, parity.mean_abs, parity.max_abs) == (2, 3, 0.25, 0.5)
    assert (parity.training_dtype, parity.serving_dtype) == ("float32", "bfloat16")


def test_tokens_that_did_not_fit_the_engine_are_not_compared() -> None:
    parity = compare([_answer(-1, -2), _answer(-3)], _scores((-1.5,), ()), "float32")
    assert (parity.tokens, parity.mean_abs) == (1, 0.5)


@pytest.mark.parametrize("served", [math.nan, -math.inf])
def test_a_log_prob_that_is_no_number_leaves_no_distance(served: float) -> None:
    scores = Scores.model_construct(replica="one", dtype="float32", logprobs=((served,),))
    parity = compare([_answer(-1)], scores, "float32")
    assert (parity.tokens, parity.mean_abs, parity.max_abs) == (1, None, None)


# --- in a round ---------------------------------------------------------------------------------------


async def _service(store: Store, folder: Path, *ends: Done, apart: float = 0.0) -> SmallService:
    """Its engines are `apart` nats a token from the trainer."""
    small = await SmallService.start(store, folder, *([end] for end in ends))
    for engine in small.engines:
        engine.apart = apart
    await small.like(*QUESTIONS)
    return small


def _scored(small: SmallService) -> list[int]:
    """How many answers each engine has scored."""
    return [sum(what == "score" for what, _ in engine.history) for engine in small.engines]


async def test_a_candidate_that_is_served_as_it_was_trained_is_promoted(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done(samples=3), apart=0.001)
    ended = await small.round()
    assert ended.state is RoundState.PROMOTED
    assert ended.parity is not None
    assert (ended.parity.samples, ended.parity.tokens) == (3, 15)
    assert ended.parity.mean_abs == pytest.approx(0.001)
    assert _scored(small) == [3, 0], "one replica speaks for all"
    adapter = await store.adapters.get(str(ended.adapter))
    assert adapter.verdict is not None
    assert "parity" in [check.name for check in adapter.verdict.checks if check.outcome == "pass"]


async def test_a_candidate_that_is_served_otherwise_is_rejected_before_anything_is_published(
    store: Store, tmp_path: Path
) -> None:
    small = await _service(store, tmp_path, Done(samples=3), apart=0.2)
    ended = await small.round()
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("parity: mean distance")
    assert ended.parity is not None
    assert ended.parity.max_abs == pytest.approx(0.2)
    assert await store.adapters.list() == ()
    assert [engine.loaded for engine in small.engines] == [set(), set()]
    assert await small.answers_by() == {BASE}


@pytest.mark.parametrize(
    "end", [Done(), Done({"candidate": evaluation(accuracy=0.1)}, samples=3)], ids=["no samples", "rejected anyway"]
)
async def test_nobody_is_asked_where_there_is_nothing_to_compare_or_decide(
    store: Store, tmp_path: Path, end: Done
) -> None:
    small = await _service(store, tmp_path, end, apart=9.0)
    ended = await small.round()
    assert ended.parity is None
    assert _scored(small) == [0, 0]
    assert ended.verdict is not None
    assert "parity" not in [check.name for check in ended.verdict.checks]


async def test_samples_that_hold_no_answer_decide_nothing(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done(samples=0))
    ended = await small.round()
    assert (ended.state, ended.reason) == (RoundState.REJECTED, "parity: no token was scored on both sides")


async def test_samples_that_cannot_be_read_fail_the_round(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done({"samples": str(tmp_path / "nowhere")}))
    ended = await small.round()
    assert ended.state is RoundState.FAILED
    assert "not a file of scored answers" in str(ended.reason)


async def test_a_candidate_that_no_replica_can_load_is_rejected(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done(samples=1))
    round = await small.ask_for_round()
    while (await store.rounds.get(round.n)).state is not RoundState.JUDGING:
        await small.rounds.step()
    small.engines[0].unloadable.add(str(((await store.rounds.get(round.n)).report or {})["adapter_name"]))
    ended = await small.finish(round)
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("loadable: ")
    assert "does not load" in str(ended.reason)
    assert await store.adapters.list() == ()


async def test_while_no_replica_runs_the_round_waits(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done(samples=1))
    small.host.gone = True
    with pytest.raises(Unavailable):
        await small.round()
    small.host.gone = False
    running = await store.rounds.running()
    assert running is not None
    assert (await small.finish(running)).state is RoundState.PROMOTED


async def test_a_conductor_that_dies_after_the_verdict_does_not_ask_again(store: Store, tmp_path: Path) -> None:
    small = await _service(store, tmp_path, Done(samples=2))
    round = await small.ask_for_round()

    async def die() -> None:
        raise Killed

    small.host.before["prepare"] = die
    with pytest.raises(Killed):
        await small.finish(round)
    for engine in small.engines:
        engine.apart = 9.0  # asked again, the verdict would be another
    small.restart_conductor()
    ended = await small.finish(round)
    assert ended.state is RoundState.PROMOTED
    assert _scored(small) == [2, 0]
