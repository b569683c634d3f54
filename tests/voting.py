"""Votes as tests send them and find them: the feedback routes alone, without a replica, and the table behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine, Row, select, text

from service.api.auth import Doorman
from service.api.cors import VotesFrom
from service.api.edge import application
from service.api.feedback import feedback_routes
from service.contracts import Role
from service.store.store import Store
from service.store.tables import feedback
from service.tokens import Tokens
from serving.meter import Meter
from tests.small_service import MAX_BODY_BYTES, client

FEEDBACK, TOKENS = "/feedback", "/feedback/tokens"
LONGEST_SECONDS = 3600  # a token's life
JSON = {"content-type": "application/json"}

_EFFECTIVE = text(
    'SELECT * FROM (SELECT DISTINCT ON (app, target, "user", kind) * FROM feedback '
    'ORDER BY app, target, "user", kind, seq DESC) AS last WHERE NOT retracted ORDER BY seq'
)


def votes_in(database: Engine) -> list[Row[Any]]:
    """The table, by `seq`."""
    with database.connect() as connection:
        return list(connection.execute(select(feedback).order_by(feedback.c.seq)))


def effective_in(database: Engine) -> list[tuple[int, str, str]]:
    """Choice, user and rating of the last vote of each user on each target, unless it was retracted; by `seq`."""
    with database.connect() as connection:
        return [(row.choice_index, row.user, row.rating) for row in connection.execute(_EFFECTIVE)]


def feedback_app(store: Store, *, insecure: bool = False, origins: Sequence[str] = ()) -> FastAPI:
    app = application("votes", max_body_bytes=MAX_BODY_BYTES, outermost=partial(VotesFrom, origins=origins))
    doorman = Doorman(store.keys, insecure=insecure)
    app.include_router(feedback_routes(store.feedback, Tokens(store.secrets, LONGEST_SECONDS), doorman, Meter("alone")))
    return app


async def with_key(store: Store, app: str = "shop") -> httpx.AsyncClient:
    """The backend of an app."""
    return client(feedback_app(store), (await store.keys.issue(Role.APP, app))[1])


async def with_token(store: Store, completion_id: str, user: str | None) -> httpx.AsyncClient:
    """A web page, with the token that the app `shop` has asked for."""
    backend = await with_key(store)
    answer = await backend.post(TOKENS, json={"completion_id": completion_id, "user": user})
    return client(feedback_app(store), answer.json()["token"])
