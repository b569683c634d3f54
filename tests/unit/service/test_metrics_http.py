"""Counting requests around an application: by template and status, with their bytes, and who left early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router

from service.metrics.http import CountsRequests
from serving.http_meter import HttpMeter

Samples = dict[tuple[str, ...], float]  # (name, label values in the order of their names) -> value


class Counted:
    """A small application with the middleware around it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        routes = [Route("/fine/{id}", fine), Route("/broken", broken), Route("/stream", endless), Route("/no", refused)]
        self.app = CountsRequests(Router(routes), HttpMeter(self.registry))

    async def ask(self, path: str, body: bytes = b"") -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://small") as caller:
            return await caller.request("GET", path, content=body)

    @property
    def samples(self) -> Samples:
        families = text_string_to_metric_families(generate_latest(self.registry).decode())
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


async def fine(request: Request) -> Response:
    return Response(await request.body())


async def broken(request: Request) -> Response:
    raise RuntimeError("it broke")


async def refused(request: Request) -> Response:
    return Response(await request.body(), 403)


async def endless(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0)

    return StreamingResponse(parts())


async def test_bodies_are_measured_and_answers_are_left_as_they_are() -> None:
    counted = Counted()
    answer = await counted.ask("/fine/7", b"x" * 300)
    assert answer.content == b"x" * 300
    found = counted.samples
    assert found["heliotrope_http_request_body_bytes_bucket", "256.0", "/fine/{id}"] == 0
    assert found["heliotrope_http_request_body_bytes_bucket", "1024.0", "/fine/{id}"] == 1
    assert found["heliotrope_http_request_duration_seconds_count", "GET", "/fine/{id}"] == 1


async def test_an_application_that_breaks_is_counted_as_500() -> None:
    counted = Counted()
    await counted.ask("/broken")
    assert counted.samples["heliotrope_http_requests_total", "500", "GET", "/broken"] == 1


async def test_errors_are_counted_by_the_code_in_them() -> None:
    counted = Counted()
    for body in (b'{"error": {"code": "insufficient_role"}}', b"no JSON", b"[]", b'{"error": null}'):
        await counted.ask("/no", body)
    errors = {key: value for key, value in counted.samples.items() if key[0] == "heliotrope_http_errors_total"}
    assert errors == {("heliotrope_http_errors_total", "insufficient_role", "/no"): 1}
    assert counted.samples["heliotrope_auth_failures_total", "insufficient_role"] == 1
    assert counted.samples["heliotrope_http_requests_total", "403", "GET", "/no"] == 4


async def test_a_client_that_leaves_in_the_middle_is_counted() -> None:
    counted, sent = Counted(), asyncio.Event()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.set()

    scope = {"type": "http", "method": "GET", "path": "/stream", "headers": [], "query_string": b"", "root_path": ""}
    await counted.app(scope, receive, send)
    assert counted.samples["heliotrope_client_disconnects_total", "/stream"] == 1
    assert counted.samples["heliotrope_http_requests_total", "200", "GET", "/stream"] == 1


async def test_who_stays_to_the_end_has_not_left() -> None:
    counted = Counted()
    await counted.ask("/fine/7")
    assert not [key for key in counted.samples if key[0] == "heliotrope_client_disconnects_total"]
