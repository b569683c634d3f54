"""Tokens over HTTP: what a web page may do with one, and what it may not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text

from service.store.store import Store
from service.tokens import SECRET
from serving.contracts import Completion
from tests.small_service import Refusal, client, refusal
from tests.voting import FEEDBACK, JSON, LONGEST_SECONDS, TOKENS, feedback_app, with_key, with_token


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    """Two answers of the app `shop` to one prompt, one to another, and one of the app `rival`."""
    await store.completions.record(make_completion("c1", "one", "two"))
    await store.completions.record(make_completion("c2", "three"))
    await store.completions.record(make_completion("c3", "four", prompt_token_ids=(9,)))
    await store.completions.record(make_completion("theirs", app="rival"))


@pytest.fixture
async def app(store: Store) -> httpx.AsyncClient:
    """The application `shop` with its key."""
    return await with_key(store)


@pytest.fixture
def face(store: Store) -> FastAPI:
    return feedback_app(store)


@pytest.fixture
async def page(store: Store) -> httpx.AsyncClient:
    """With a token for ada's votes on c1."""
    return await with_token(store, "c1", "ada")


async def test_a_token_says_how_long_it_lives(app: httpx.AsyncClient) -> None:
    for asked, seconds in (({}, LONGEST_SECONDS), ({"expires_in_seconds": 60}, 60)):
        before = datetime.now(UTC).replace(microsecond=0)
        answer = await app.post(TOKENS, json={"completion_id": "c1"} | asked)
        assert answer.status_code == 201
        expires_at = datetime.fromisoformat(answer.json()["expires_at"])
        assert before <= expires_at - timedelta(seconds=seconds) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_parameter", "completion_id"),
        ({"completion_id": "c1", "expires_in_seconds": 0}, "invalid_value", "expires_in_seconds"),
        ({"completion_id": "c1", "expires_in_seconds": LONGEST_SECONDS + 1}, "invalid_value", "expires_in_seconds"),
        ({"completion_id": "c1", "user": "\0"}, "invalid_value", "user"),
        ({"completion_id": "c1", "kinds": []}, "unknown_parameter", "kinds"),
    ],
    ids=str,
)
async def test_a_token_that_cannot_be_given_says_why(
    app: httpx.AsyncClient, body: dict[str, Any], code: str, param: str
) -> None:
    assert refusal(await app.post(TOKENS, json=body)) == Refusal(400, code, param)


async def test_a_vote_with_a_token_is_its_users(
    app: httpx.AsyncClient, page: httpx.AsyncClient, database_engine: Engine
) -> None:
    assert (await page.post(FEEDBACK, json={"completion_id": "c1", "rating": "up"})).status_code == 201
    assert (await page.post(FEEDBACK, json={"completion_id": "c1", "rating": "down", "user": "ada"})).status_code == 201
    with database_engine.connect() as connection:
        votes = connection.execute(text('SELECT app, "user", rating FROM feedback ORDER BY seq')).all()
    assert votes == [("shop", "ada", "up"), ("shop", "ada", "down")]


async def test_a_token_votes_on_every_choice_of_its_completion_and_on_nothing_else(page: httpx.AsyncClient) -> None:
    sides = {"completion_id": "c1", "choice_index": 1, "preferred_over": {"choice_index": 0}}
    assert (await page.post(FEEDBACK, json=sides)).status_code == 201
    elsewhere = await page.post(FEEDBACK, json={"completion_id": "c2", "rating": "up"})
    assert refusal(elsewhere) == Refusal(403, "token_other_completion", "completion_id")
    rival = await page.post(FEEDBACK, json={"completion_id": "c1", "preferred_over": {"completion_id": "c2"}})
    assert refusal(rival) == Refusal(403, "token_other_completion", "preferred_over")


@pytest.mark.parametrize("granted", ["ada", None])
async def test_a_token_does_not_vote_as_somebody_else(
    app: httpx.AsyncClient, face: FastAPI, granted: str | None
) -> None:
    token = (await app.post(TOKENS, json={"completion_id": "c1", "user": granted})).json()["token"]
    answer = await client(face, token).post(FEEDBACK, json={"completion_id": "c1", "rating": "up", "user": "bob"})
    assert refusal(answer) == Refusal(403, "token_other_user", "user")


async def test_a_token_takes_back_its_users_votes_on_its_completion_and_no_others(
    app: httpx.AsyncClient, page: httpx.AsyncClient
) -> None:
    vote = {"completion_id": "c1", "rating": "up", "user": "ada"}
    for id, change in (("f1", {}), ("f2", {"user": "bob"}), ("f3", {"completion_id": "c2"})):
        await app.post(FEEDBACK, json=vote | change | {"feedback_id": id})
    assert (await page.delete(f"{FEEDBACK}/f1")).status_code == 204
    for id in ("f2", "f3", "f4"):
        assert refusal(await page.delete(f"{FEEDBACK}/{id}")) == Refusal(404, "feedback_not_found", "feedback_id")


async def test_a_token_is_no_key(page: httpx.AsyncClient) -> None:
    answer = await page.post(TOKENS, json={"completion_id": "c1"})
    assert refusal(answer) == Refusal(401, "invalid_api_key")


async def test_a_token_of_another_app_votes_on_nothing_of_ours(store: Store, face: FastAPI) -> None:
    rival = await with_key(store, "rival")
    token = (await rival.post(TOKENS, json={"completion_id": "c1"})).json()["token"]
    answer = await client(face, token).post(FEEDBACK, json={"completion_id": "c1", "rating": "up"})
    assert refusal(answer) == Refusal(404, "completion_not_found", "completion_id")


async def _forged(store: Store, secret: str | None = None, **claims: Any) -> str:
    granted: dict[str, Any] = {"aud": "heliotrope/feedback", "app": "shop", "completion_id": "c1", "user": "ada"}
    granted["exp"] = datetime.now(UTC) + timedelta(hours=1)
    given = {name: value for name, value in (granted | claims).items() if value is not None}
    return jwt.encode(given, secret or await store.secrets.get(SECRET), "HS256")


async def test_an_expired_token_says_so_before_anything_is_said_of_the_body(store: Store, face: FastAPI) -> None:
    page = client(face, await _forged(store, exp=datetime.now(UTC) - timedelta(seconds=1)))
    for answer in (await page.post(FEEDBACK, content=b"{", headers=JSON), await page.delete(f"{FEEDBACK}/f1")):
        assert refusal(answer) == Refusal(401, "token_expired")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_token_that_we_did_not_sign_is_refused(store: Store, face: FastAPI) -> None:
    good = await _forged(store)
    assert (await client(face, good).post(FEEDBACK, json={"completion_id": "c1", "rating": "up"})).status_code == 201
    nobody = jwt.encode({"app": "shop", "completion_id": "c1", "aud": "heliotrope/feedback"}, "", "none")
    claims, signature = good.rsplit(".", 1)
    for token in (
        await _forged(store, secret="s" * 64),
        await _forged(store, aud="somebody else's"),
        await _forged(store, exp=None),
        await _forged(store, app=None),
        nobody,
        f"{claims}.{signature[::-1]}",
        "..",
        "é.é.é",
    ):
        headers = [(b"authorization", f"Bearer {token}".encode("latin-1"))]
        answer = await client(face, None).post(FEEDBACK, json={"completion_id": "c1", "rating": "up"}, headers=headers)
        assert refusal(answer) == Refusal(401, "invalid_token"), token


async def test_a_token_opens_in_every_process(
    store: Store, face: FastAPI, page: httpx.AsyncClient, database_url: str
) -> None:
    other = Store(database_url)
    elsewhere = httpx.AsyncClient(
        transport=httpx.ASGITransport(feedback_app(other)), base_url="http://heliotrope", headers=page.headers
    )
    assert (await elsewhere.post(FEEDBACK, json={"completion_id": "c1", "rating": "up"})).status_code == 201
    await other.close()


async def test_without_authentication_a_token_still_says_who_votes(store: Store) -> None:
    face = feedback_app(store, insecure=True)
    anybody = client(face, None)
    token = (await anybody.post(TOKENS, json={"completion_id": "c1", "user": "ada"})).json()["token"]
    answer = await client(face, token).post(FEEDBACK, json={"completion_id": "c2", "rating": "up"})
    assert refusal(answer) == Refusal(403, "token_other_completion", "completion_id")


async def test_processes_that_need_the_secret_at_the_same_time_all_get_the_same(
    store: Store, database_url: str
) -> None:
    stores = [Store(database_url) for _ in range(4)]
    secrets = await asyncio.gather(*(process.secrets.get("new") for process in stores))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 64
    assert await store.secrets.get("other") != secrets[0]
    for process in stores:
        await process.close()
