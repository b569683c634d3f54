"""`/ops/preferences`: every vote with what became of it. `/ops/quarantine`: what is held back, and the word on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from service.api.auth import Doorman
from service.api.bodies import optional_json_body
from service.contracts import Key, Role
from service.curation import held
from service.curation.held import Held
from service.overview import Overview
from service.pairs import LeftOut, Source
from service.store.fates import Status, Wanted
from service.store.store import Store
from service.tuning import Objective

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[int | None, Query(ge=0)]


class DecisionBody(BaseModel):
    """`POST /ops/quarantine/{id}/release` and `.../drop`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str | None = Field(default=None, max_length=1000)


def preference_routes(overview: Overview, store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops")
    operator = Depends(doorman.allow(Role.OPERATOR))
    decision_body = Depends(optional_json_body(DecisionBody))

    @router.get("/preferences")
    async def show(
        key: Key = operator,
        status: Status | None = None,
        reason: LeftOut | None = None,
        objective: Objective | None = None,
        app: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        source: Source | None = None,
        limit: Limit = 100,
        after: After = None,
        wait: bool = False,
    ) -> dict[str, Any]:
        """The sums, and votes, the newest first; `next` is the `after` of the page that follows.

        With `wait` the answer comes when it is up to date, however long that takes.
        """
        if wait:
            await overview.bring_up_to_date()
        view = await overview.read(objective)
        wanted = Wanted(status, reason, app, user, tag, source)
        thumbs = overview.learns_from_thumbs(objective)
        votes = await store.fates.page(wanted, thumbs=thumbs, limit=limit, after=after)
        following = votes[-1]["seq"] if len(votes) == limit else None
        return {"funnel": view.funnel, "up_to_date": view.up_to_date, "votes": votes, "next": following}

    @router.get("/quarantine")
    async def list_held(
        key: Key = operator, status: held.Status | None = None, limit: Limit = 100, after: After = None
    ) -> dict[str, Any]:
        items = await store.quarantine.list(status, limit, after)
        return {"data": items, "next": items[-1].id if len(items) == limit else None}

    async def decide(id: int, status: Literal["released", "dropped"], key: Key, body: DecisionBody) -> Held:
        return await store.quarantine.decide(id, status, who=key.app, reason=body.reason)

    @router.post("/quarantine/{id}/release")
    async def release(id: int, key: Key = operator, body: DecisionBody = decision_body) -> Held:
        return await decide(id, "released", key, body)

    @router.post("/quarantine/{id}/drop")
    async def drop(id: int, key: Key = operator, body: DecisionBody = decision_body) -> Held:
        return await decide(id, "dropped", key, body)

    return router
