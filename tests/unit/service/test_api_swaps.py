"""Shares, full names and rollbacks over HTTP: what operators set, and what apps are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store.store import Store
from serving.contracts import BASE, Route
from tests.small_service import Refusal, SmallService, refusal

CHAT = "/chat/completions"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    return await small.operator()


@pytest.fixture
async def app(small: SmallService) -> httpx.AsyncClient:
    return await small.app()


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]} | fields


async def test_shares_are_set_and_what_is_left_out_stays(small: SmallService, operator: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    await operator.put("/ops/split", json={"candidate": adapter.name, "candidate_share": 0.05, "reason": "canary"})
    answer = await operator.put("/ops/split", json={"baseline": BASE, "baseline_share": 0.01, "expected_generation": 1})
    assert answer.status_code == 200
    assert (
        answer.json()["route"]
        == Route(
            generation=2, candidate=adapter.name, candidate_share=0.05, baseline=BASE, baseline_share=0.01
        ).model_dump()
    )
    assert answer.json()["prepare_seconds"] == 0
    emptied = await operator.put("/ops/split", json={"candidate": None})
    assert (emptied.json()["route"]["candidate"], emptied.json()["route"]["baseline_share"]) == (None, 0.01)
    audit = (await operator.get("/ops/audit")).json()["data"]
    assert [(entry["who"], entry["action"]) for entry in audit] == [("tess", "split")] * 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"candidate_share": 0.5}, Refusal(400, "invalid_value")),
        ({"candidate_share": 1.5}, Refusal(400, "invalid_value", "candidate_share")),
        ({"share": 0.5}, Refusal(400, "unknown_parameter", "share")),
        ({"candidate": BASE, "candidate_share": 0.5}, Refusal(409, "already_current", "candidate")),
        ({"candidate": "policy-0009-00000000"}, Refusal(404, "adapter_not_found", "name")),
        ({"baseline": BASE, "expected_generation": 3}, Refusal(412, "route_moved", "expected_generation")),
    ],
)
async def test_a_split_that_cannot_be_is_refused(
    small: SmallService, operator: httpx.AsyncClient, body: dict[str, Any], expected: Refusal
) -> None:
    assert refusal(await operator.put("/ops/split", json=body)) == expected
    assert await small.store.route.read() == Route()


async def test_apps_set_no_shares(app: httpx.AsyncClient, small: SmallService) -> None:
    operations = httpx.AsyncClient(
        transport=httpx.ASGITransport(small.operations_app()), base_url=app.base_url, headers=app.headers
    )
    assert refusal(await operations.put("/ops/split", json={"baseline": BASE})).status == 403


async def test_a_rollback_of_what_no_longer_answers_is_refused(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    bad = await small.publish(1)
    await operator.post(f"/ops/adapters/{bad.name}/promote")
    first = await operator.post("/ops/rollback", json={"expected_current": bad.name})
    assert first.json()["route"]["stable"] == BASE
    again = await operator.post("/ops/rollback", json={"expected_current": bad.name})
    assert refusal(again) == Refusal(412, "route_moved", "expected_current")


async def test_a_reason_that_cannot_be_stored_is_refused_and_leaves_nothing_loaded(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    adapter = await small.publish(1)
    answer = await operator.post(f"/ops/adapters/{adapter.name}/promote", json={"reason": "too\0short"})
    assert refusal(answer) == Refusal(400, "invalid_value")
    assert (await small.store.route.read()).stable == BASE
    assert small.loaded == [set(), set()]


async def test_a_full_name_is_answered_though_it_is_not_loaded(small: SmallService, app: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    answer = await app.post(CHAT, json=ask(adapter.name))
    assert (answer.status_code, answer.json()["model"]) == (200, adapter.name)
    assert answer.headers["x-policy-version"] == adapter.name
    assert refusal(await app.post(CHAT, json=ask("policy-0009-00000000"))) == Refusal(404, "model_not_found", "model")


async def test_without_a_place_for_a_full_name_the_answer_is_to_come_back(
    small: SmallService, app: httpx.AsyncClient
) -> None:
    engine = small.engines[0]
    engine.adapter_capacity = 1  # which is left for the next adapter that is to answer everybody
    adapter = await small.publish(1)
    answer = await app.post(CHAT, json=ask(adapter.name))
    assert refusal(answer) == Refusal(503, "adapter_places_full", "model")
    assert int(answer.headers["retry-after"]) > 0
    assert engine.history == []


async def test_an_adapter_whose_files_were_deleted_is_an_unknown_model(
    small: SmallService, app: httpx.AsyncClient, operator: httpx.AsyncClient
) -> None:
    old, new = await small.publish(1), await small.publish(2)
    assert await small.store.adapters.delete_unneeded(1, who="retention") == (old.name,)
    assert refusal(await app.post(CHAT, json=ask(old.name))) == Refusal(404, "model_not_found", "model")
    listed = (await operator.get("/ops/adapters")).json()["data"]
    assert [(adapter["name"], adapter["deleted_at"] is None) for adapter in listed] == [
        (new.name, True),
        (old.name, False),
    ]
    refused = await operator.post(f"/ops/adapters/{old.name}/promote")
    assert refusal(refused) == Refusal(409, "adapter_deleted", "name")


async def test_the_status_says_why_a_replica_lags(small: SmallService, operator: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    await small.store.route.change(
        0, Route(generation=1, stable=adapter.name), who="x", action="promote", subject=adapter.name, detail={}
    )
    small.engines[1].unloadable.add(adapter.name)
    for replica in small.host.replicas.values():
        await replica.reconcile()
    one, two = (await operator.get("/ops/status")).json()["replicas"]
    assert (one["generation"], one["loaded"], one["error"]) == (1, [adapter.name], None)
    assert (two["generation"], two["wanted"], two["loaded"]) == (0, [adapter.name], [])
    assert adapter.name in two["error"]
    assert {"in_flight", "waiting"} <= two.keys()
