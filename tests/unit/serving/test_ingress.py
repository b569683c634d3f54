"""What stands before Ray's proxy: headers that would steer it are dropped, and broken answers are made whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.ingress import FromHere, Front, middlewares

JSON = [(b"content-type", b"application/json")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
TEXT = [(b"content-type", b"text/plain")]


def start(status: int, headers: Sequence[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Proxy:
    """Answers with the messages it was given, and keeps the headers it was asked with."""

    def __init__(self, *messages: Message) -> None:
        self._messages = messages
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = dict(scope["headers"])
        for message in self._messages:
            await send(message)


async def through(proxy: Proxy, *headers: tuple[bytes, bytes]) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await Front(proxy)({"type": "http", "headers": list(headers)}, receive, send)
    return sent


def refusal(sent: Sequence[Message]) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    head, only = sent
    return head["status"], json.loads(only["body"])["error"], dict(head["headers"])


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"Serve_Multiplexed-Model_Id",
        b"x-session-id",
        b"x_session_id",
    ],
)
async def test_a_header_that_steers_the_proxy_does_not_reach_it(name: bytes) -> None:
    proxy = Proxy(start(200, JSON), body(b"{}"))
    await through(proxy, (name, b"?1"), (b"authorization", b"Bearer x"), (b"x-request-id", b"mine"))
    assert proxy.headers == {b"authorization": b"Bearer x", b"x-request-id": b"mine"}


@pytest.mark.parametrize(
    "messages",
    [
        (start(200, JSON), body(b'{"a": 1}')),
        (start(404, JSON), body(b'{"error": {}}')),
        (start(204, ()), body(b"")),
        (start(200, TEXT), body(b"two ", more=True), body(b"parts")),
        (start(200, STREAM), body(b"data: {}\n\n", more=True), body(b"data: [DONE]\n\n", more=True), body(b"")),
        (start(200, STREAM), body(b'data: {"error": {}}\n\n', more=True), body(b"")),
    ],
)
async def test_a_whole_answer_of_ours_is_passed_on_as_it_is(messages: tuple[Message, ...]) -> None:
    assert await through(Proxy(*messages)) == list(messages)


async def test_an_answer_that_never_begins_says_that_its_replica_is_gone() -> None:
    status, error, headers = refusal(await through(Proxy()))
    assert (status, error["code"], error["type"]) == (502, "replica_lost", "server_error")
    assert headers[b"retry-after"] == b"1"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "no_replica", "service_unavailable_error"),
        (408, "deadline_exceeded", "timeout_error"),
        (500, None, "server_error"),
    ],
)
async def test_the_proxys_own_words_become_an_error_of_the_contract(status: int, code: str | None, kind: str) -> None:
    sent = await through(Proxy(start(status, TEXT), body(b"Traceback: /home", more=True), body(b"...")))
    found, error, headers = refusal(sent)
    assert (found, error["code"], error["type"], error["param"]) == (status, code, kind, None)
    assert "Traceback" not in error["message"]
    assert (b"retry-after" in headers) is (status == 503)


async def test_how_long_to_wait_is_the_proxys_to_say() -> None:
    sent = await through(Proxy(start(503, [*TEXT, (b"retry-after", b"7")]), body(b"later")))
    assert dict(sent[0]["headers"])[b"retry-after"] == b"7"


async def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    sent = await through(Proxy(start(200, STREAM), body(b"data: {}\n\n", more=True)))
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert not sent[-1].get("more_body")
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]


async def test_a_stream_that_breaks_off_after_its_end_is_not_called_an_error() -> None:
    sent = await through(Proxy(start(200, STREAM), body(b"data: [DONE]\n\n", more=True)))
    assert sent[-1] == {"type": "http.response.body", "body": b""}


async def test_what_is_no_http_passes_untouched() -> None:
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["type"])

    async def nothing(*_: Any) -> Any: ...

    await Front(app)({"type": "lifespan"}, nothing, nothing)
    assert asked == ["lifespan"]


@pytest.mark.parametrize(
    ("client", "server", "status"),
    [
        ("192.0.2.7", "192.0.2.7", 200),  # HAProxy, at the address by which Ray knows this machine
        ("127.0.0.1", "127.0.0.1", 200),
        ("::1", "::1", 200),
        ("192.0.2.8", "192.0.2.7", 403),
        ("2001:db8::8", "2001:db8::7", 403),
    ],
)
async def test_a_replicas_own_port_answers_this_machine_alone(client: str, server: str, status: int) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    proxy = Proxy(start(200, JSON), body(b"{}"))
    await FromHere(proxy)(
        {"type": "http", "headers": [], "client": (client, 5), "server": (server, 30000)}, receive, send
    )
    assert sent[0]["status"] == status


def test_behind_haproxy_the_replicas_own_ports_are_closed_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert [middleware.cls for middleware in middlewares()] == [Front, FromHere]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert [middleware.cls for middleware in middlewares()] == [Front]
