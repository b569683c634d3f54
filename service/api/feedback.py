"""`POST /v1/feedback`: a user's thumb on an answer, durable before the 201.

First of the seven files of a thumbs-up; `service/preferences.py` makes pairs of what is stored here.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.store.feedback import Feedback
from service.votes import FeedbackBody


def feedback_routes(feedback: Feedback, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    app_key = Depends(doorman.allow(Role.APP))

    @router.post("/feedback")
    async def vote(body: FeedbackBody, key: Key = app_key) -> Response:
        receipt, created = await feedback.put(key.app, body)
        return JSONResponse(receipt.model_dump(mode="json"), 201 if created else 200)

    @router.delete("/feedback/{feedback_id}", status_code=204)
    async def retract(feedback_id: str, key: Key = app_key) -> Response:
        await feedback.retract(key.app, feedback_id)
        return Response(status_code=204)

    return router
