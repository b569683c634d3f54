"""`/ops/rounds` over HTTP: started, seen, followed, stopped."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contracts import RoundState
from service.store.store import Store
from tests.fake_trainer import RUNNING, Done, progress, step
from tests.small_service import Refusal, SmallService, refusal
from training.contracts import Progress

QUESTIONS = ["first question", "second question"]
ROUNDS = "/ops/rounds"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    """The operator `tess` with her key."""
    return await small.operator()


async def test_a_round_is_started_seen_and_ended(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like(*QUESTIONS)
    started = await operator.post(ROUNDS, json={"beta": 0.2, "note": "first"})
    assert started.status_code == 202
    assert (started.json()["n"], started.json()["state"], started.json()["requested_by"]) == (1, "queued", "tess")
    await small.finish(await small.store.rounds.get(1))
    shown = (await operator.get(f"{ROUNDS}/1")).json()
    assert (shown["state"], shown["settings"]["beta"], shown["note"]) == ("promoted", 0.2, "first")
    assert shown["verdict"]["promote"] is True
    assert [round["n"] for round in (await operator.get(ROUNDS)).json()["data"]] == [1]


async def test_the_body_of_a_round_may_be_left_out(operator: httpx.AsyncClient) -> None:
    assert (await operator.post(ROUNDS)).status_code == 202


async def test_a_second_round_is_a_conflict_that_is_not_retried(operator: httpx.AsyncClient) -> None:
    await operator.post(ROUNDS)
    second = await operator.post(ROUNDS)
    assert refusal(second) == Refusal(409, "round_running")
    assert second.headers["x-should-retry"] == "false"


async def test_an_idempotency_key_answers_with_the_first_round(operator: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "nightly-7"}
    first = await operator.post(ROUNDS, json={"note": "a"}, headers=headers)
    again = await operator.post(ROUNDS, json={"note": "a"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["n"] == again.json()["n"] == 1
    other = await operator.post(ROUNDS, json={"note": "b"}, headers=headers)
    assert refusal(other) == Refusal(409, "idempotency_conflict", "Idempotency-Key")


async def test_a_dry_run_says_whether_there_is_enough_and_starts_nothing(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    await small.like(*QUESTIONS)
    dry = await operator.post(ROUNDS, json={"dry_run": True})
    assert (dry.status_code, dry.json()["enough"], dry.json()["min_pairs"]) == (200, True, 2)
    assert dry.json()["funnel"]["votes_in_pairs"] == 4
    assert (await operator.post(ROUNDS, json={"dry_run": True, "min_pairs": 3})).json()["enough"] is False
    assert await small.store.rounds.list() == ()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ('{"betta": 1}', "betta", "unknown_parameter"),
        ('{"beta": 0}', "beta", "invalid_value"),
        ('{"beta": NaN}', None, "invalid_json"),
        ('{"learning_rate": Infinity}', None, "invalid_json"),
        ('{"epochs": 0}', "epochs", "invalid_value"),
        ('{"min_pairs": 1}', "min_pairs", "invalid_value"),
        ('{"objective": "ppo"}', "objective", "invalid_value"),
        ('{"dry_run": "perhaps"}', "dry_run", "invalid_value"),
        ("[]", None, "invalid_json"),
        ("{", None, "invalid_json"),
    ],
)
async def test_a_bad_body_starts_no_round(
    small: SmallService, operator: httpx.AsyncClient, body: str, param: str | None, code: str
) -> None:
    answer = await operator.post(ROUNDS, content=body, headers={"content-type": "application/json"})
    assert refusal(answer) == Refusal(400, code, param)
    assert await small.store.rounds.list() == ()


async def test_a_round_can_be_cancelled_once(small: SmallService, operator: httpx.AsyncClient) -> None:
    await operator.post(ROUNDS)
    cancelled = await operator.post(f"{ROUNDS}/1/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["reason"] == "cancelled by tess"
    assert refusal(await operator.post(f"{ROUNDS}/1/cancel")) == Refusal(409, "round_over")


async def test_a_candidate_is_approved_or_turned_down_by_the_operator_of_the_key(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"rounds": {"approval": "always"}})
    operator = await small.operator()
    for word, ends in (("reject", "rejected"), ("approve", "awaiting_approval")):
        await small.like(*(f"{word} {question}" for question in QUESTIONS))
        n = (await small.ask_for_round()).n
        while (await small.store.rounds.get(n)).state is not RoundState.AWAITING_APPROVAL:
            await small.rounds.step()
        decided = await operator.post(f"{ROUNDS}/{n}/{word}", json={"reason": "because"})
        assert (decided.status_code, decided.json()["state"]) == (200, ends)
    assert decided.json()["approved_by"] == "tess"
    while await small.rounds.step():
        pass
    assert refusal(await operator.post(f"{ROUNDS}/{n}/approve")) == Refusal(409, "nothing_to_approve")


@pytest.mark.parametrize("word", ["approve", "reject", "cancel"])
async def test_only_operators_decide(small: SmallService, word: str) -> None:
    app = await small.app()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(small.operations_app()), base_url="http://h", headers=app.headers
    ) as shop:
        assert (await shop.post(f"{ROUNDS}/1/{word}")).status_code == 403


async def test_rounds_are_paused_and_resumed(small: SmallService, operator: httpx.AsyncClient) -> None:
    assert (await operator.get("/ops/triggers")).json()["pause"] is None
    paused = await operator.post("/ops/pause", json={"reason": "audit"})
    assert (paused.status_code, paused.json()["who"], paused.json()["reason"]) == (200, "tess", "audit")
    assert (await operator.get("/ops/triggers")).json()["pause"] == paused.json()
    assert (await operator.post("/ops/resume")).json() == {"was_paused": True}
    assert (await operator.post("/ops/resume")).json() == {"was_paused": False}
    assert refusal(await operator.post("/ops/pause", json={"for": "ever"})) == Refusal(400, "unknown_parameter", "for")


async def test_what_a_canary_could_see_is_told(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like(*QUESTIONS)
    told = (await operator.get("/ops/canary/power")).json()
    assert (told["adapter"], told["traffic"]["users"], told["steps"]) == ("base", 2, [])
    assert {sight["harm"] for sight in told["sights"]} == {"disliked", "failed", "refused", "slow", "long"}
    assert {sight["share"] for sight in told["sights"]} == {0.5}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/7"), ("POST", "/7/cancel"), ("POST", "/7/approve"), ("POST", "/7/reject"), ("GET", "/7/events")],
)
async def test_an_unknown_round_is_not_found(operator: httpx.AsyncClient, method: str, path: str) -> None:
    assert refusal(await operator.request(method, ROUNDS + path)) == Refusal(404, "round_not_found", "n")


@pytest.mark.parametrize(
    ("path", "param"),
    [(f"{ROUNDS}/first", "n"), (f"{ROUNDS}?limit=0", "limit"), (f"{ROUNDS}/1/events?after=-1", "after")],
)
async def test_a_bad_path_or_query_is_refused_by_name(operator: httpx.AsyncClient, path: str, param: str) -> None:
    assert refusal(await operator.get(path)) == Refusal(400, "invalid_value", param)


def _events(answer: httpx.Response) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, event, data) of each server-sent event."""
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((int(lines["id"]), lines["event"], json.loads(lines["data"])["data"]))
    return found


async def test_events_are_followed_until_the_round_ends(store: Store, tmp_path: Path) -> None:
    steps = [progress(Progress(kind="step", step=step(number))) for number in (1, 2)]
    small = await SmallService.start(store, tmp_path, [RUNNING, *steps, Done()])
    await small.like(*QUESTIONS)
    operator = await small.operator()
    round = await small.ask_for_round()
    following = asyncio.create_task(operator.get(f"{ROUNDS}/{round.n}/events"))
    await small.finish(round)
    answer = await following
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    told = _events(answer)
    assert [id for id, _, _ in told] == sorted({id for id, _, _ in told})
    assert [data["state"] for _, kind, data in told if kind == "state"][-1] == "promoted"
    assert [data["step"] for _, kind, data in told if kind == "step"] == [1, 2]
    assert {kind for _, kind, _ in told} == {"state", "attempt", "step", "swap"}


async def test_events_continue_behind_the_last_one_seen(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like(*QUESTIONS)
    round = await small.round()
    assert round.state is RoundState.PROMOTED
    told = _events(await operator.get(f"{ROUNDS}/1/events"))
    seen = told[2][0]
    assert _events(await operator.get(f"{ROUNDS}/1/events?after={seen}")) == told[3:]
    reconnected = await operator.get(f"{ROUNDS}/1/events?after=0", headers={"last-event-id": str(seen)})
    assert _events(reconnected) == told[3:]
    assert (await operator.get(f"{ROUNDS}/1/events?after={told[-1][0]}")).text == ""
