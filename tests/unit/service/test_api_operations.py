"""`/ops` over HTTP: how the service is, adapters, preferences, keys and audit; rounds are in test_api_rounds.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store.store import Store
from serving.adapters import WEIGHTS
from serving.contracts import BASE, Route
from tests.adapter_files import flip_byte
from tests.small_service import Refusal, SmallService, client, refusal

QUESTIONS = ["first question", "second question"]


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    """The operator `tess` with her key."""
    return await small.operator()


# --- how the service is -------------------------------------------------------------------------------


async def test_the_status_tells_who_answers_and_what_a_round_would_use(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    await small.like(*QUESTIONS)
    await small.ask_for_round()
    status = (await operator.get("/ops/status")).json()
    assert status["model"] == "tiny"
    assert status["route"] == Route(generation=1, stable=adapter.name, previous=BASE).model_dump()
    assert [(replica["replica"], replica["loaded"]) for replica in status["replicas"]] == [
        ("one", [adapter.name]),
        ("two", [adapter.name]),
    ]
    assert (status["running_round"]["n"], status["running_round"]["state"]) == (1, "queued")
    assert (status["funnel"]["votes"], status["funnel"]["pairs_from_votes"]) == (4, 2)


async def test_the_status_lists_who_answers_and_says_why_others_do_not(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    small.host.deaf.add("two")
    status = (await operator.get("/ops/status")).json()
    assert [replica["replica"] for replica in status["replicas"]] == ["one"]
    assert (status["silent"], status["trouble"]) == (["two is deaf"], None)
    small.host.gone = True
    status = (await operator.get("/ops/status")).json()
    assert (status["replicas"], status["silent"], status["trouble"]) == ([], [], "no replica answers")


async def test_the_status_tells_of_a_pause(small: SmallService, operator: httpx.AsyncClient) -> None:
    assert (await operator.get("/ops/status")).json()["pause"] is None
    await operator.post("/ops/pause", json={"reason": "a holiday"})
    pause = (await operator.get("/ops/status")).json()["pause"]
    assert (pause["who"], pause["reason"]) == ("tess", "a holiday")


async def test_the_status_tells_of_a_canary_that_runs(store: Store, tmp_path: Path) -> None:
    steps = {"steps": (0.25, 1.0), "soak_minutes": 60, "advance": "approved"}
    small = await SmallService.start(store, tmp_path, sections={"canary": steps})
    await small.like(*QUESTIONS)
    round = await small.ask_for_round()
    operator = await small.operator()
    assert (await operator.get("/ops/status")).json()["canary"] is None, "nobody is answered by it yet"
    while (canary := (await small.store.rounds.get(round.n)).canary) is None or canary["waits_for"] is None:
        await small.rounds.step()
    shown = (await operator.get("/ops/status")).json()
    assert shown["canary"] == {
        "candidate": shown["route"]["candidate"], "steps_begun": 1, "share": 0.25, "requests": 0, "held": False,
        "waits_for": canary["waits_for"],
    }  # fmt: skip


# --- adapters and the route ---------------------------------------------------------------------------


async def test_adapters_are_listed_and_shown(small: SmallService, operator: httpx.AsyncClient) -> None:
    first, second = await small.publish(1), await small.publish(2)
    listed = (await operator.get("/ops/adapters")).json()["data"]
    assert [adapter["name"] for adapter in listed] == [second.name, first.name]
    shown = (await operator.get(f"/ops/adapters/{first.name}")).json()
    assert (shown["parent"], shown["manifest_sha256"]) == (BASE, first.manifest_sha256)
    missing = await operator.get("/ops/adapters/policy-0009-00000000")
    assert refusal(missing) == Refusal(404, "adapter_not_found", "name")


async def test_an_adapter_is_promoted_and_rolled_back(small: SmallService, operator: httpx.AsyncClient) -> None:
    first, second = await small.publish(1), await small.publish(2)
    promoted = await operator.post(f"/ops/adapters/{first.name}/promote")
    assert promoted.status_code == 200
    assert promoted.json()["route"]["stable"] == first.name
    assert promoted.json()["seconds"] >= promoted.json()["prepare_seconds"] > 0
    body = {"expected_current": first.name, "reason": "better"}
    await operator.post(f"/ops/adapters/{second.name}/promote", json=body)
    assert await small.answers_by() == {second.name}
    back = await operator.post("/ops/rollback", json={"reason": "worse"})
    assert (back.status_code, back.json()["route"]["stable"]) == (200, first.name)
    assert await small.answers_by() == {first.name}
    audit = (await operator.get("/ops/audit")).json()["data"]
    assert [(entry["who"], entry["action"], entry["detail"]["reason"]) for entry in audit] == [
        ("tess", "rollback", "worse"),
        ("tess", "promote", "better"),
        ("tess", "promote", None),
    ]


async def test_a_promotion_that_expects_another_adapter_is_412(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    adapter = await small.publish(1)
    answer = await operator.post(f"/ops/adapters/{adapter.name}/promote", json={"expected_current": adapter.name})
    assert refusal(answer) == Refusal(412, "route_moved", "expected_current")
    assert await small.answers_by() == {BASE}


async def test_a_corrupt_adapter_is_422_and_the_old_one_stays(small: SmallService, operator: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    flip_byte(Path(adapter.directory) / WEIGHTS)
    assert refusal(await operator.post(f"/ops/adapters/{adapter.name}/promote")) == Refusal(422, "adapter_rejected")
    assert await small.answers_by() == {BASE}


async def test_a_rollback_without_anything_before_is_a_conflict(operator: httpx.AsyncClient) -> None:
    answer = await operator.post("/ops/rollback")
    assert refusal(answer) == Refusal(409, "nothing_to_roll_back")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("path", "field"), [("/ops/rollback", "form"), ("/ops/adapters/x/promote", "expected")])
async def test_an_unknown_field_changes_no_route(operator: httpx.AsyncClient, path: str, field: str) -> None:
    assert refusal(await operator.post(path, json={field: "x"})) == Refusal(400, "unknown_parameter", field)


# --- preferences --------------------------------------------------------------------------------------


async def test_preferences_show_every_vote_and_why_it_is_in_no_pair(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    ids = await small.like(*QUESTIONS)
    app = await small.app()
    alone = {"model": "policy", "messages": [{"role": "user", "content": "nobody else asks this"}]}
    lonely = (await app.post("/chat/completions", json=alone)).json()["id"]
    await app.post("/feedback", json={"completion_id": lonely, "rating": "up"})
    shown = (await operator.get("/ops/preferences")).json()
    assert shown["funnel"]["left_out"] == {"no_partner": 1}
    assert {vote["completion_id"] for vote in shown["votes"]} == {*ids, lonely}
    paired = (await operator.get("/ops/preferences?status=paired")).json()["votes"]
    assert len(paired) == 4
    assert {vote["reason"] for vote in paired} == {None}
    [left_out] = (await operator.get("/ops/preferences?status=left_out")).json()["votes"]
    assert (left_out["completion_id"], left_out["reason"]) == (lonely, "no_partner")
    assert (await operator.get("/ops/preferences?reason=no_partner")).json()["votes"] == [left_out]
    assert (await operator.get("/ops/preferences?reason=truncated")).json()["votes"] == []
    assert len((await operator.get("/ops/preferences?limit=3")).json()["votes"]) == 3
    assert refusal(await operator.get("/ops/preferences?reason=bored")) == Refusal(400, "invalid_value", "reason")


# --- keys ---------------------------------------------------------------------------------------------


async def test_keys_are_issued_listed_and_revoked_and_that_is_audited(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    issued = await operator.post("/ops/keys", json={"role": "app", "app": "shop"})
    assert issued.status_code == 201
    key, secret = issued.json()["key"], issued.json()["secret"]
    app = client(small.chat_app(), secret)
    assert (await app.get("/models")).status_code == 200
    listed = await operator.get("/ops/keys")
    assert key in listed.json()["data"]
    assert secret not in listed.text
    assert (await operator.delete(f"/ops/keys/{key['id']}")).status_code == 204
    assert (await app.get("/models")).status_code == 401
    audit = (await operator.get("/ops/audit?limit=2")).json()["data"]
    assert [(entry["who"], entry["action"], entry["subject"]) for entry in audit] == [
        ("tess", "revoke_key", key["id"]),
        ("tess", "issue_key", key["id"]),
    ]
    assert secret not in json.dumps(audit)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"role": "admin", "app": "shop"}, "role"),
        ({"role": "app", "app": ""}, "app"),
        ({"role": "app", "app": "a b"}, "app"),
        ({"role": "app", "app": "x" * 65}, "app"),
        ({"role": "app"}, "app"),
    ],
    ids=str,
)
async def test_a_key_needs_a_role_and_a_plain_name(
    operator: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    assert refusal(await operator.post("/ops/keys", json=body)).param == param


async def test_an_unknown_key_cannot_be_revoked(operator: httpx.AsyncClient) -> None:
    assert (await operator.delete("/ops/keys/000000000000")).status_code == 404
