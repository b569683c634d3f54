"""Too much at once over HTTP: who is turned away, with which words and headers, and what goes on all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from service.store.store import Store
from tests.fakes import until
from tests.small_service import Refusal, SmallService, client, refusal

HELLO: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
CHAT, FEEDBACK = "/chat/completions", "/feedback"


async def test_what_does_not_fit_into_the_queue_is_503_and_says_when_to_come_back(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"serving": {"max_requests": 1, "max_waiting": 0}})
    app = await small.app()
    small.engines[0].flowing.clear()
    runs = asyncio.create_task(app.post(CHAT, json=HELLO))
    await until(lambda: bool(small.engines[0].running))
    answer = await app.post(CHAT, json=HELLO)
    assert refusal(answer) == Refusal(503, "overloaded")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert "x-should-retry" not in answer.headers, "nothing was done: it may come again"
    small.engines[0].flowing.set()
    completion = (await runs).json()["id"]
    assert (await app.post(FEEDBACK, json={"completion_id": completion, "rating": "up"})).status_code == 201


async def test_votes_pass_while_no_chat_does(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"serving": {"max_requests": 1, "max_waiting": 0}})
    app = await small.app()
    completion = (await app.post(CHAT, json=HELLO)).json()["id"]
    small.engines[0].flowing.clear()
    runs = asyncio.create_task(app.post(CHAT, json=HELLO))
    await until(lambda: bool(small.engines[0].running))
    assert (await app.post(CHAT, json=HELLO)).status_code == 503
    assert (await app.post(FEEDBACK, json={"completion_id": completion, "rating": "up"})).status_code == 201
    small.engines[0].flowing.set()
    await runs


async def test_an_answer_past_its_deadline_is_504_and_not_to_be_tried_again(store: Store, tmp_path: Path) -> None:
    sections = {"serving": {"answer_seconds": 0.05, "drain_seconds": 1}}
    small = await SmallService.start(store, tmp_path, sections=sections)
    small.engines[0].flowing.clear()
    answer = await (await small.app()).post(CHAT, json=HELLO)
    assert refusal(answer) == Refusal(504, "deadline_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    await small.replica.close()


async def test_a_key_over_its_limit_is_429_and_others_are_answered(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"limits": {"requests_per_minute": 2}})
    app, other = await small.app(), await small.app("blog")
    first, _ = [await app.post(CHAT, json=HELLO) for _ in range(2)]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    answer = await app.post(CHAT, json=HELLO)
    assert refusal(answer) == Refusal(429, "rate_limited")
    assert "2 requests a minute" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) > 0
    assert (await other.post(CHAT, json=HELLO)).status_code == 200
    vote = {"completion_id": first.json()["id"], "rating": "up"}
    assert (await app.post(FEEDBACK, json=vote)).status_code == 201, "votes are no chats"


async def test_a_key_may_have_limits_of_its_own_and_pays_for_the_tokens_it_used(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    operator = await small.operator()
    body = {"role": "app", "app": "shop", "limits": {"tokens_per_minute": 1, "concurrent_requests": 5}}
    issued = (await operator.post("/ops/keys", json=body)).json()
    assert issued["key"]["limits"] == {"requests_per_minute": None, "tokens_per_minute": 1, "concurrent_requests": 5}
    app = client(small.chat_app(), issued["secret"])
    first = await app.post(CHAT, json=HELLO)
    assert (first.status_code, first.headers["x-ratelimit-limit-concurrent"]) == (200, "5")
    answer = await app.post(CHAT, json=HELLO)
    assert refusal(answer) == Refusal(429, "rate_limited")
    assert "1 tokens a minute" in answer.json()["error"]["message"]
