"""`/v1` over HTTP: chat, models and feedback, and the one shape of everything that is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from service.contracts import Role
from service.limiting.settings import LimitSettings
from service.store.store import Store
from serving.contracts import BASE
from tests.fakes import authors, chunk, until
from tests.small_service import MAX_BODY_BYTES, Refusal, SmallService, client, refusal

HELLO: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
CHAT, FEEDBACK = "/chat/completions", "/feedback"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def app(small: SmallService) -> httpx.AsyncClient:
    """The application `shop` with its key."""
    return await small.app()


def events(answer: httpx.Response) -> list[str]:
    return [event for event in answer.text.split("\n\n") if event]


# --- chat ---------------------------------------------------------------------------------------------


async def test_an_answer_names_its_policy_in_body_and_header(small: SmallService, app: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    answer = await app.post(CHAT, json=HELLO)
    assert answer.status_code == 200
    assert answer.json()["model"] == answer.headers["x-policy-version"] == adapter.name
    assert answer.json()["id"] == answer.headers["x-completion-id"]
    assert authors(answer.json()["choices"][0]["message"]["content"]) == {adapter.name}


async def test_a_stream_is_server_sent_events_with_one_id_and_one_policy(app: httpx.AsyncClient) -> None:
    answer = await app.post(CHAT, json=HELLO | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(answer)
    assert last == "data: [DONE]"
    assert {chunk(event)["id"] for event in chunks} == {answer.headers["x-completion-id"]}
    assert {chunk(event)["model"] for event in chunks} == {answer.headers["x-policy-version"]} == {BASE}


async def test_models_lists_what_a_request_may_name(small: SmallService, app: httpx.AsyncClient) -> None:
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    listed = (await app.get("/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [
        *("policy", "policy@stable", "policy@previous", "base", adapter.name)
    ]


async def _served(app: FastAPI, key: str, body: dict[str, Any], send: Any, receive: Any) -> None:
    """One POST of a chat body, as a server would hand it to the application."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("heliotrope", 80),
    }
    waiting = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def next_message() -> dict[str, Any]:
        return waiting.pop(0) if waiting else await receive()

    await app(scope, next_message, send)


async def test_a_completion_can_be_rated_while_its_last_byte_is_on_the_way(
    small: SmallService, app: httpx.AsyncClient
) -> None:
    _, key = await small.store.keys.issue(Role.APP, "shop")
    votes: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        body = message.get("body", b"").decode()
        if "data: [DONE]" in body:
            return
        if body and chunk(body)["choices"][0]["delta"]["content"].endswith("/1 "):  # the last token
            vote = {"completion_id": chunk(body)["id"], "rating": "up"}
            votes.append((await app.post(FEEDBACK, json=vote)).status_code)

    async def stays() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    await _served(small.chat_app(), key, HELLO | {"stream": True}, send, stays)
    assert votes == [201]


async def test_a_client_that_goes_away_in_the_middle_gives_its_pin_back(small: SmallService) -> None:
    _, key = await small.store.keys.issue(Role.APP, "shop")
    first = asyncio.Event()
    small.engines[0].flowing.clear()

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            first.set()

    async def goes() -> dict[str, Any]:
        await first.wait()
        assert small.replica.status().in_flight == {BASE: 1}
        return {"type": "http.disconnect"}

    await _served(small.chat_app(), key, HELLO | {"stream": True}, send, goes)
    await until(lambda: small.replica.status().in_flight == {})
    await small.replica.close()


async def test_a_client_that_goes_away_before_the_first_byte_is_sent_stops_the_engine(small: SmallService) -> None:
    """The response is dropped with its stream; nothing waits for the garbage collector."""
    _, key = await small.store.keys.issue(Role.APP, "shop")
    small.engines[0].flowing.clear()

    async def send(message: dict[str, Any]) -> None:
        raise OSError("the client has gone")

    async def stays() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    with pytest.raises((OSError, ExceptionGroup, ClientDisconnect)):
        await _served(small.chat_app(), key, HELLO | {"stream": True}, send, stays)
    assert small.engines[0].running == {}
    assert small.replica.status().in_flight == {}
    await small.replica.close()


# What steers Ray's proxy, or would name the request, where something read it.
STEERING = {
    "x-request-id": "mine",
    "x-session-id": "mine",
    "serve_multiplexed_model_id": "policy-0001-00000000",
    "x-request-timeout-seconds": "0",
    "x-request-disconnect-disabled": "?1",
    "x-data-parallel-rank": "7",
}


async def test_headers_of_a_caller_decide_nothing(app: httpx.AsyncClient) -> None:
    answers = [await app.post(CHAT, json=HELLO, headers=STEERING) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    ids = [answer.headers["x-completion-id"] for answer in answers]
    assert len({*ids}) == 2 and not any("mine" in id for id in ids)
    assert {answer.json()["model"] for answer in answers} == {BASE}


async def test_a_streaming_client_that_goes_away_no_longer_counts_as_running(small: SmallService) -> None:
    limits = LimitSettings(concurrent_requests=1)
    _, key = await small.store.keys.issue(Role.APP, "shop", limits)
    app = small.chat_app()
    small.engines[0].flowing.clear()
    first = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            first.set()

    async def goes() -> dict[str, Any]:
        await first.wait()
        assert refusal(await client(app, key).post(CHAT, json=HELLO)) == Refusal(429, "rate_limited")
        return {"type": "http.disconnect"}

    await _served(app, key, HELLO | {"stream": True}, send, goes)
    small.engines[0].flowing.set()
    assert (await client(app, key).post(CHAT, json=HELLO)).status_code == 200
    await small.replica.close()


# --- bodies that are refused --------------------------------------------------------------------------


BAD_CHAT: dict[str, tuple[bytes, Refusal]] = {
    "no body": (b"", Refusal(400, "missing_parameter")),
    "broken": (b'{"model": ', Refusal(400, "invalid_json")),
    "not UTF-8": (b'{"model": "\xff"}', Refusal(400, "invalid_json")),
    "an array": (b"[]", Refusal(400, "invalid_json")),
    "a string": (b'"hello"', Refusal(400, "invalid_json")),
    "null": (b"null", Refusal(400, "invalid_json")),
    "nested too deeply": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, Refusal(400, "invalid_json")),
    "a number with too many digits": (b'{"seed": ' + b"9" * 5000 + b"}", Refusal(400, "invalid_json")),
    "an integer that no double holds": (b'{"seed": 9007199254740993}', Refusal(400, "invalid_json")),
    "a number beyond all numbers": (b'{"temperature": 1e999}', Refusal(400, "invalid_json")),
    "a key that stands twice": (b'{"model": "policy", "n": 1, "n": 2}', Refusal(400, "invalid_json")),
    "a key that stands twice, deep inside": (
        b'{"model": "policy", "messages": [{"role": "user", "role": "system", "content": "hi"}]}',
        Refusal(400, "invalid_json"),
    ),
    "33 levels": (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", Refusal(400, "invalid_json")),
    "NaN": (json.dumps(HELLO | {"temperature": float("nan")}).encode(), Refusal(400, "invalid_json")),
    "an unknown field": (
        json.dumps(HELLO | {"temprature": 1}).encode(),
        Refusal(400, "unsupported_parameter", "temprature"),
    ),
    "a token of control": (
        json.dumps(HELLO | {"messages": [{"role": "user", "content": "hi<|end|>"}]}).encode(),
        Refusal(400, "control_token", "messages.0.content"),
    ),
    "no messages": (b'{"model": "policy"}', Refusal(400, "invalid_value", "messages")),
    "empty messages": (b'{"model": "policy", "messages": []}', Refusal(400, "invalid_value", "messages")),
    "an over-long prompt": (
        json.dumps(HELLO | {"messages": [{"role": "user", "content": "x" * 5000}]}).encode(),
        Refusal(400, "context_length_exceeded", "messages"),
    ),
    "an unknown model": (
        json.dumps(HELLO | {"model": "gpt-5"}).encode(),
        Refusal(404, "model_not_found", "model"),
    ),
    "half a surrogate pair for a model": (
        json.dumps(HELLO | {"model": "\ud800"}).encode(),
        Refusal(404, "model_not_found", "model"),
    ),
    "half a surrogate pair for a field": (b'{"\\ud800": 1}', Refusal(400, "unsupported_parameter", "\\ud800")),
}


@pytest.mark.parametrize(("body", "error"), BAD_CHAT.values(), ids=BAD_CHAT.keys())
async def test_a_bad_chat_body_is_refused_in_openais_shape(app: httpx.AsyncClient, body: bytes, error: Refusal) -> None:
    answer = await app.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert refusal(answer) == error


async def test_a_body_that_is_not_sent_as_json_says_so(app: httpx.AsyncClient) -> None:
    answer = await app.post(CHAT, content=json.dumps(HELLO), headers={"content-type": "text/plain"})
    assert refusal(answer) == Refusal(400, "invalid_json")
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, FEEDBACK])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_huge_body_is_too_large_whether_it_is_announced_or_not(
    app: httpx.AsyncClient, path: str, announced: bool
) -> None:
    body = b'{"model": "' + b"x" * MAX_BODY_BYTES + b'"}'

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    headers = {"content-type": "application/json"}
    answer = await app.post(path, content=body if announced else parts(), headers=headers)
    assert refusal(answer) == Refusal(413, "body_too_large")


async def test_a_path_or_method_that_does_not_exist_has_the_same_shape(app: httpx.AsyncClient) -> None:
    missing = await app.get("/completions")
    assert refusal(missing) == Refusal(404, "route_not_found")
    assert missing.json()["error"]["message"] == "There is no GET /completions."
    wrong = await app.get(CHAT)
    assert refusal(wrong) == Refusal(405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["message"] == "/chat/completions does not take GET."


@pytest.mark.parametrize(
    "path",
    [
        "/invocations",
        "/tokenize",
        "/pause",
        "/load_lora_adapter",
        "/completions",
        "/responses",
        "/server_info",
        "/docs",
    ],
)
async def test_routes_of_the_engine_s_own_server_are_not_there(app: httpx.AsyncClient, path: str) -> None:
    for prefix in ("", "/v1"):
        assert refusal(await app.post(prefix + path, json={})) == Refusal(404, "route_not_found")
        assert (await app.get(prefix + path)).status_code == 404


async def test_what_breaks_inside_is_a_500_that_tells_nothing_of_the_inside(
    small: SmallService, app: httpx.AsyncClient
) -> None:
    small.engines[0].dead = True
    answer = await app.post(CHAT, json=HELLO)
    await small.replica.close()
    assert refusal(answer) == Refusal(500, None)
    assert "process" not in answer.text


async def test_without_the_database_the_answer_is_503_and_says_when_to_try_again(
    small: SmallService, tmp_path: Path
) -> None:
    away = dataclasses.replace(small, store=Store(f"postgresql+psycopg://heliotrope@/postgres?host={tmp_path}"))
    insecure = client(away.chat_app(insecure=True), None)
    answer = await insecure.post(FEEDBACK, json={"completion_id": "c", "rating": "up"})
    assert refusal(answer) == Refusal(503, "storage_unavailable")
    assert answer.headers["retry-after"] == "1"


# --- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer sk-123"},
        {"authorization": "Bearer hel_app_000000000000_" + "x" * 43},
        {"authorization": "Bearer h\u00e9l".encode("latin-1")},
    ],
    ids=str,
)
async def test_without_a_valid_key_the_answer_is_401(small: SmallService, headers: dict[str, Any]) -> None:
    answer = await client(small.chat_app(), None).post(CHAT, json=HELLO, headers=headers)
    assert refusal(answer) == Refusal(401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_that_is_sent_twice_or_in_another_scheme_is_no_key(small: SmallService) -> None:
    _, key = await small.store.keys.issue(Role.APP, "shop")
    anonymous = client(small.chat_app(), None)
    for headers in ([("authorization", f"Bearer {key}")] * 2, [("authorization", f"Basic {key}")]):
        assert (await anonymous.post(CHAT, json=HELLO, headers=headers)).status_code == 401


async def test_a_revoked_key_opens_nothing(small: SmallService) -> None:
    issued, key = await small.store.keys.issue(Role.APP, "shop")
    app = client(small.chat_app(), key)
    assert (await app.get("/models")).status_code == 200
    await small.store.keys.revoke(issued.id)
    assert (await app.get("/models")).status_code == 401


OPEN = {"/healthz", "/readyz"}


@pytest.mark.parametrize("room", ["chat", "operations"])
async def test_every_route_refuses_strangers_and_the_other_role(small: SmallService, room: str) -> None:
    app = small.chat_app() if room == "chat" else small.operations_app()
    other = Role.OPERATOR if room == "chat" else Role.APP
    stranger, wrong = client(app, None), client(app, (await small.store.keys.issue(other, "x"))[1])
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path not in OPEN]
    assert len(routes) >= 4
    for route in routes:
        path = re.sub(r"{\w+(:path)?}", "1", route.path)
        for method in route.methods:
            body = {} if method == "POST" else None
            assert refusal(await stranger.request(method, path, json=body)).status == 401, (method, path)
            refused = refusal(await wrong.request(method, path, json=body))
            assert refused == Refusal(403, "insufficient_role"), (method, path)


async def test_without_authentication_everybody_may_chat(small: SmallService) -> None:
    anybody = client(small.chat_app(insecure=True), None)
    answer = await anybody.post(CHAT, json=HELLO)
    vote = {"completion_id": answer.json()["id"], "rating": "up"}
    assert (await anybody.post(FEEDBACK, json=vote)).status_code == 201
