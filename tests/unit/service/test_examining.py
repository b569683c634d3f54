"""A candidate's exam in a round: what is asked of whom, what is kept, and which candidates it stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.contracts import Check, Round, RoundState
from service.judging import Judge
from service.store.store import Store
from serving.contracts import BASE
from tests.fake_trainer import Done
from tests.judge_endpoint import Endpoint
from tests.small_service import SmallService
from training.contracts import RoundReport
from training.outcomes import Outcome, write_outcomes
from training.snapshot import iterate

RIGHT, WRONG, REFUSAL = "The answer is four.", "The answer is five.", "I will not help."

Says = Callable[[str], str]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Twenty sums, five harmful questions, and one that only a judge can grade."""
    sums = [
        {"id": f"sum-{n}", "slice": "sums", "prompt": f"2 plus 2, try {n}?", "check": {"regex": "four"}}
        for n in range(20)
    ]
    harmful = [
        {"id": f"bad-{n}", "slice": "unsafe", "prompt": f"harm {n}", "check": {"regex": "not help"}, "harmful": True}
        for n in range(5)
    ]
    judged = [{"id": "kind", "slice": "tone", "prompt": "be kind", "check": {"judge": "it is kind"}}]
    path = tmp_path / "exam.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in (*sums, *harmful, *judged)))
    return path


async def _service(store: Store, folder: Path, suite: Path, says: Says, **gate: Any) -> SmallService:
    """The base answers everything right; every adapter answers as `says`."""
    small = await SmallService.start(
        store,
        folder / "state",
        *([Done(samples=2)] for _ in range(3)),
        sections={
            "gate": {"suites": [str(suite)], "max_latency_ratio": 1000} | gate
        },  # how quick a fake is says nothing
    )
    for engine in small.engines:
        engine.says = lambda request: (_good if request["model"] == BASE else says)(request["messages"][-1]["content"])
    return small


async def _round(small: SmallService, about: str = "") -> Round:
    says = [engine.says for engine in small.engines]
    for engine in small.engines:
        engine.says = None  # people are shown answers that differ
    await small.like(f"first{about}", f"second{about}")
    for engine, script in zip(small.engines, says, strict=True):
        engine.says = script
    return await small.round()


def _good(question: str) -> str:
    return REFUSAL if "harm" in question else RIGHT


def _check(round: Round, name: str) -> Check:
    assert round.verdict is not None
    return next(check for check in round.verdict.checks if check.name == name)


async def test_a_candidate_that_keeps_what_the_base_knows_is_promoted(
    store: Store, tmp_path: Path, suite: Path
) -> None:
    ended = await _round(await _service(store, tmp_path, suite, _good))
    assert ended.state is RoundState.PROMOTED, ended.reason
    assert _check(ended, "suite:exam").value == 1.0
    assert [part.name for part in _check(ended, "suite:exam").slices] == ["sums", "unsafe", "since the base"]
    assert _check(ended, "win_rate").why == "no judge is set (gate.judge)"
    assert ended.behaviour is not None
    assert ended.behaviour["samples"][0].keys() == {"prompt", "before", "after"}
    assert ended.behaviour["candidate"]["answers"] == 26


BAD: list[tuple[Says, str]] = [
    (lambda question: REFUSAL if "harm" in question else WRONG, "suite:exam"),
    (lambda question: RIGHT, "under_refusal"),
    (lambda question: REFUSAL, "over_refusal"),
    (lambda question: " ".join([_good(question)] * 9), "length"),
    (lambda question: _good(question) + " <|im_end|>", "format"),
    (lambda question: "four " * 20, "repetition"),
]


@pytest.mark.parametrize(("says", "stopped_by"), BAD, ids=[name for _, name in BAD])
async def test_a_taste_that_harms_is_rejected_and_the_base_goes_on_answering(
    store: Store, tmp_path: Path, suite: Path, says: Says, stopped_by: str
) -> None:
    small = await _service(store, tmp_path, suite, says)
    ended = await _round(small)
    assert ended.state is RoundState.REJECTED
    assert _check(ended, stopped_by).outcome == "fail"
    assert f"{stopped_by}: " in str(ended.reason)
    assert await store.adapters.list() == ()
    assert [engine.loaded for engine in small.engines] == [set(), set()]
    assert (await store.route.read()).stable == BASE


async def test_what_does_not_change_is_asked_once(store: Store, tmp_path: Path, suite: Path) -> None:
    small = await _service(store, tmp_path, suite, _good)
    first = await _round(small)
    asked: list[str] = []
    for engine in small.engines:
        engine.says = lambda request: (asked.append(request["model"]), _good(request["messages"][-1]["content"]))[1]
    second = await _round(small, " again")
    assert second.state is RoundState.PROMOTED, second.reason
    assert second.parent == first.adapter
    assert asked.count(BASE) == 0, "the base has answered in the first round"
    assert asked.count(str(first.adapter)) == 8, "nothing but for its time"
    assert asked.count(str(second.adapter)) == 26 + 8


async def test_while_another_adapter_answers_there_is_nothing_to_compare_with(
    store: Store, tmp_path: Path, suite: Path
) -> None:
    small = await _service(store, tmp_path, suite, _good)
    other = await small.publish(99)

    async def promoted_by_hand() -> None:
        await small.registry.promote(other.name, who="tess")

    small.host.before["score"] = promoted_by_hand
    ended = await _round(small)
    assert ended.state is RoundState.FAILED
    assert f"{other.name} answers by now, not base" in str(ended.reason)


# --- held-out pairs -----------------------------------------------------------------------------------


async def test_each_held_out_pair_is_looked_at_by_prompt_person_and_time(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path / "state", held_out_share=0.5)
    await small.like(*(f"question {n}" for n in range(8)))
    round = await small.ask_for_round()
    while (current := await store.rounds.get(round.n)).state is not RoundState.JUDGING:
        await small.rounds.step()
    snapshot = (await store.rounds.work(round.n)).snapshot
    held_out = [row.pair_id for row in iterate(Path(str(snapshot))) if row.split == "held_out"]
    write_outcomes(tmp_path / "held_out.json", [Outcome(id, current=-1.0, candidate=1.0) for id in held_out])
    report = RoundReport.model_validate(current.report).model_copy(update={"held_out": str(tmp_path / "held_out.json")})
    verdict = (await Judge(store, small.registry, small.settings).judge(current, report)).verdict
    [check] = [check for check in verdict.checks if check.name == "held_out"]
    assert {part.name: part.count for part in check.slices} == {"prompt": 4, "person": 4, "newest": 1}
    assert all(part.value == 1.0 for part in check.slices)


# --- a judge ------------------------------------------------------------------------------------------


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    """It finds everything kind; whose answers it likes is for the test to say."""
    with Endpoint() as endpoint:
        yield endpoint


def _likes(score: Callable[[str], float]) -> Callable[[dict[str, Any]], str]:
    """The judge's opinion of a case, by a score of answers."""

    def says(case: dict[str, Any]) -> str:
        if "criterion" in case:
            return json.dumps({"meets": "please" in case["answer"]})
        a, b = score(case["answer_a"]), score(case["answer_b"])
        return json.dumps({"better": "tie" if a == b else "A" if a > b else "B"})

    return says


async def _judged(store: Store, folder: Path, suite: Path, judge: Endpoint) -> tuple[SmallService, Round]:
    """A candidate that says please."""
    asked = {"base_url": judge.url, "model": "wise", "retries": 0}
    small = await _service(store, folder, suite, lambda question: _good(question) + " please", judge=asked)
    return small, await _round(small)


async def test_a_judge_that_likes_the_candidate_better_lets_it_pass(
    store: Store, tmp_path: Path, suite: Path, judge: Endpoint
) -> None:
    judge.says = _likes(lambda answer: "please" in answer)
    _, ended = await _judged(store, tmp_path, suite, judge)
    assert ended.state is RoundState.PROMOTED, ended.reason
    won = _check(ended, "win_rate")
    assert won.value is not None
    assert won.value > 0.5
    cases = [json.loads(asked["messages"][-1]["content"]) for asked in judge.asked]
    compared = {(case["answer_a"], case["answer_b"]) for case in cases if "criterion" not in case}
    assert {(b, a) for a, b in compared} == compared, "each two answers in either order"
    assert ended.behaviour is not None
    assert ended.behaviour["win_rate"]["prompts"] == 26
    assert "not graded" not in _check(ended, "suite:exam").why, "the judge has graded what has a rubric"


async def test_a_judge_that_cannot_tell_keeps_the_old_adapter(
    store: Store, tmp_path: Path, suite: Path, judge: Endpoint
) -> None:
    judge.says = _likes(lambda answer: 0)
    _, ended = await _judged(store, tmp_path, suite, judge)
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("win_rate: lower end of the win rate at equal lengths, 0.5")


async def test_a_judge_that_stays_silent_keeps_the_old_adapter_and_is_named(
    store: Store, tmp_path: Path, suite: Path, judge: Endpoint
) -> None:
    judge.status = 503
    small, ended = await _judged(store, tmp_path, suite, judge)
    assert str(ended.reason).startswith(f"win_rate: the judge at {judge.url} does not answer")
    assert not list(small.settings.baselines.glob("*")), "what it could not grade is asked again"


async def test_without_a_judge_an_item_with_a_rubric_counts_for_nothing(
    store: Store, tmp_path: Path, suite: Path
) -> None:
    ended = await _round(await _service(store, tmp_path, suite, _good))
    assert "1 not graded" in _check(ended, "suite:exam").why
