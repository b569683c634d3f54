"""`POST /v1/feedback`: a thumb, a comparison or a correction, durable before the 201; and tokens to vote from a page.

First of the seven files of a thumbs-up; `service/preferences.py` makes pairs of what is stored here.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from service.api.auth import Doorman, Voter
from service.api.bodies import json_body
from service.contracts import Key, Role
from service.errors import HeliotropeError
from service.store.feedback import Feedback
from service.tokens import TokenBody, Tokens
from service.votes import FeedbackBody
from serving.meter import Meter


def feedback_routes(feedback: Feedback, tokens: Tokens, doorman: Doorman, meter: Meter) -> APIRouter:
    router = APIRouter()
    app_key = Depends(doorman.allow(Role.APP))
    voting = Depends(doorman.voter(tokens))
    vote_body, token_body = Depends(json_body(FeedbackBody)), Depends(json_body(TokenBody))

    @router.post("/feedback")
    async def vote(voter: Voter = voting, body: FeedbackBody = vote_body) -> Response:
        began, outcome = time.monotonic(), "failed"
        try:
            receipt, created = await feedback.put(voter.app, voter.admit(body))
            outcome = "new" if created else "repeated"
        except HeliotropeError as error:
            outcome = error.code or "refused"
            raise
        finally:
            meter.voted(body.kind.value, outcome, time.monotonic() - began)
        return JSONResponse(receipt.model_dump(mode="json"), 201 if created else 200)

    @router.delete("/feedback/{feedback_id:path}", status_code=204)
    async def retract(feedback_id: str, voter: Voter = voting) -> Response:
        await feedback.retract(voter.app, feedback_id, voter.grant)
        return Response(status_code=204)

    @router.post("/feedback/tokens")
    async def issue_token(key: Key = app_key, body: TokenBody = token_body) -> Response:
        return JSONResponse((await tokens.issue(key.app, body)).model_dump(mode="json"), 201)

    return router
