"""Votes from web pages of another origin: what a browser is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.cors import VotesFrom
from service.api.edge import application
from service.app import ChatEdge
from service.settings import ServerSettings, StoreSettings
from service.store.store import Store
from serving.contracts import Completion
from tests.small_service import MAX_BODY_BYTES, Refusal, SmallService, refusal
from tests.voting import FEEDBACK, JSON, feedback_app, with_token

PAGE = "https://shop.example"


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    await store.completions.record(make_completion("c1"))


@pytest.fixture
async def token(store: Store) -> str:
    """For ada's votes on c1."""
    return (await with_token(store, "c1", "ada")).headers["authorization"]


@pytest.fixture
def browser(store: Store, token: str) -> httpx.AsyncClient:
    return _browser(feedback_app(store, origins=[PAGE]), token)


def _browser(app: Any, authorization: str) -> httpx.AsyncClient:
    """With the page open."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": authorization, "origin": PAGE}
    return httpx.AsyncClient(transport=transport, base_url="http://heliotrope", headers=headers)


def _preflight(
    method: str = "POST", headers: str = "authorization, content-type", origin: str = PAGE
) -> dict[str, str]:
    return {"origin": origin, "access-control-request-method": method, "access-control-request-headers": headers}


def _allowed(answer: httpx.Response) -> str | None:
    assert "access-control-allow-credentials" not in answer.headers
    return answer.headers.get("access-control-allow-origin")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_page_of_a_configured_origin_may_vote(browser: httpx.AsyncClient, method: str) -> None:
    allowed = await browser.options(f"{FEEDBACK}/f1" if method == "DELETE" else FEEDBACK, headers=_preflight(method))
    assert (allowed.status_code, _allowed(allowed)) == (200, PAGE)
    assert method in allowed.headers["access-control-allow-methods"]
    vote = {"completion_id": "c1", "rating": "up", "feedback_id": "f1"}
    assert _allowed(await browser.post(FEEDBACK, json=vote)) == PAGE
    assert _allowed(await browser.delete(f"{FEEDBACK}/f1")) == PAGE


async def test_a_page_can_read_what_was_wrong(browser: httpx.AsyncClient, tmp_path: Path) -> None:
    refused = [
        (await browser.post(FEEDBACK, content=b"{", headers=JSON), 400),
        (await browser.post(FEEDBACK, json={}, headers={"authorization": "Bearer no"}), 401),
        (await browser.post(FEEDBACK, json={"completion_id": "c2", "rating": "up"}), 403),
        (await browser.delete(f"{FEEDBACK}/f9"), 404),
        (await browser.post(FEEDBACK, content=b"x" * MAX_BODY_BYTES + b"x", headers=JSON), 413),
    ]
    away = Store(f"postgresql+psycopg://heliotrope@/postgres?host={tmp_path}")
    offline = _browser(feedback_app(away, insecure=True, origins=[PAGE]), "none")
    refused.append((await offline.post(FEEDBACK, json={"completion_id": "c1", "rating": "up"}), 503))
    await away.close()
    for answer, status in refused:
        assert refusal(answer).status == status
        assert _allowed(answer) == PAGE
    assert refused[-1][0].headers["access-control-expose-headers"] == "retry-after"


async def test_a_page_can_read_that_something_broke(store: Store) -> None:
    app = application("broken", max_body_bytes=MAX_BODY_BYTES, outermost=partial(VotesFrom, origins=[PAGE]))

    @app.post(FEEDBACK)
    async def breaks() -> None:
        raise ZeroDivisionError

    answer = await _browser(app, "none").post(FEEDBACK)
    assert (refusal(answer).status, _allowed(answer)) == (500, PAGE)


@pytest.mark.parametrize(
    "headers", [_preflight(origin="https://evil.example"), _preflight("PUT"), _preflight(headers="x-odd")]
)
async def test_another_origin_method_or_header_is_refused(browser: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await browser.options(FEEDBACK, headers=headers)
    assert refusal(answer) == Refusal(400, "cors_refused")
    assert _allowed(answer) in (None, PAGE)
    assert (_allowed(answer) is None) is (headers["origin"] != PAGE)


async def test_other_routes_know_no_other_origin_and_without_the_setting_none_does(
    store: Store, browser: httpx.AsyncClient, token: str
) -> None:
    for answer in (
        await browser.options("/chat/completions", headers=_preflight()),
        await _browser(feedback_app(store), token).options(FEEDBACK, headers=_preflight()),
    ):
        assert refusal(answer).status in (404, 405)
        assert _allowed(answer) is None


async def test_where_the_application_is_mounted_makes_no_difference(store: Store, token: str) -> None:
    mounted = FastAPI()
    mounted.mount("/v1", feedback_app(store, origins=[PAGE]))
    answer = await _browser(mounted, token).post(f"/v1{FEEDBACK}", json={"completion_id": "c1", "rating": "up"})
    assert (answer.status_code, _allowed(answer)) == (201, PAGE)


async def test_the_chat_application_takes_the_origins_from_the_settings(
    store: Store, database_url: str, token: str, tmp_path: Path
) -> None:
    small = await SmallService.start(store, tmp_path)
    edge = ChatEdge(database_url, ServerSettings(cors_origins=(PAGE,)), StoreSettings())
    journal = edge.journal()
    vote = {"completion_id": "c1", "rating": "up"}
    answer = await _browser(edge.http(small.replica, journal), token).post(FEEDBACK, json=vote)
    assert (answer.status_code, _allowed(answer)) == (201, PAGE)
    await journal.close()
