"""What takes the votes of `votes.py`, under uvicorn in a process of its own: ours, a plain peer, and no store at all.

    python -m tests.benchmarks.vote_server SIDE DATABASE_URL PORT

All three parse and check the same body; ours and the peer know the caller by the same key and keep the same rows.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from sqlalchemy import insert, select

from service.api.auth import Doorman
from service.api.bodies import json_body
from service.api.edge import application
from service.api.feedback import feedback_routes
from service.app import MAX_CHAT_BODY_BYTES
from service.contracts import Key, Role
from service.errors import NotFound
from service.postgres.sessions import Sessions
from service.settings import ServerSettings
from service.store.store import Store
from service.store.tables import choices, completions, feedback, stale_prompts
from service.tokens import Tokens
from service.votes import FeedbackBody, FeedbackReceipt, target
from serving.meter import Meter

_BODY = Depends(json_body(FeedbackBody))


def ours(url: str, app: FastAPI) -> None:
    """The feedback routes of the chat application."""
    store = Store(url)
    tokens = Tokens(store.secrets, ServerSettings().feedback_token_seconds)
    doorman = Doorman(store.keys, insecure=False)
    app.include_router(feedback_routes(store.feedback, tokens, doorman, Meter("alone")))


def plain(url: str, app: FastAPI) -> None:
    """As one would write it at first: a transaction for each vote, from the same pool."""
    sessions, app_key = Sessions(url), Depends(Doorman(Store(url).keys, insecure=False).allow(Role.APP))

    @app.post("/feedback")
    async def vote(key: Key = app_key, body: FeedbackBody = _BODY) -> Response:
        async with sessions.transaction() as connection:
            answered = (await connection.execute(
                select(completions.c.adapter, completions.c.prompt_digest)
                .join(choices, choices.c.completion_id == completions.c.id)
                .where(completions.c.app == key.app, choices.c.completion_id == body.completion_id,
                       choices.c.choice_index == body.choice_index)
            )).one_or_none()  # fmt: skip
            if answered is None:
                raise NotFound("There is no such choice.")
            row = body.model_dump(include={"feedback_id", "completion_id", "choice_index", "user", "rating", "tags"})
            row |= {"app": key.app, "prompt_digest": answered.prompt_digest}
            await connection.execute(
                insert(feedback).values(kind=body.kind, target=target(body), body_sha256="", **row)
            )
            await connection.execute(insert(stale_prompts).values(app=key.app, prompt_digest=answered.prompt_digest))
        return _receipt(body.feedback_id, answered.adapter)


def bare(url: str, app: FastAPI) -> None:
    """The limit: no key, no store, an answer made of what was asked."""

    @app.post("/feedback")
    async def vote(body: FeedbackBody = _BODY) -> Response:
        return _receipt(body.feedback_id, "base")


def _receipt(feedback_id: str | None, adapter: str) -> Response:
    receipt = FeedbackReceipt(feedback_id=feedback_id or "", adapter=adapter, effective=True)
    return JSONResponse(receipt.model_dump(mode="json"), 201)


SIDES = {side.__name__: side for side in (ours, plain, bare)}

if __name__ == "__main__":
    name, url, port = sys.argv[1:]
    app = application("votes", max_body_bytes=MAX_CHAT_BODY_BYTES)
    SIDES[name](url, app)
    uvicorn.run(app, port=int(port), log_level="error", access_log=False)
