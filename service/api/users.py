"""`DELETE /ops/users/{user}`: erases a person; the answer says what is gone, and which adapters learned from it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.keeping.erasing import Erased, Eraser


def user_routes(eraser: Eraser, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/users")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.delete("/{user:path}")
    async def erase(
        user: str, key: Key = operator, app: Annotated[str | None, Query(min_length=1, max_length=64)] = None
    ) -> Erased:
        """`user` as the apps name them; without `app`, in all apps."""
        return await eraser.erase(user, app, who=key.app)

    return router
