"""Who calls, and may they? Keys in `Authorization: Bearer ...`, two roles, deny by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from service.contracts import Key, Role
from service.errors import Forbidden, Unauthenticated
from service.store.keys import Keys

Guard = Callable[[Request], Awaitable[Key]]


class Doorman:
    """Makes the dependency that each route names. `insecure`: everybody may do everything, for a laptop."""

    def __init__(self, keys: Keys, *, insecure: bool) -> None:
        self._keys = keys
        self._insecure = insecure

    def allow(self, role: Role) -> Guard:
        async def guard(request: Request) -> Key:
            if self._insecure:
                return Key(id="none", role=role, app="local")
            key = await self._keys.verify(_presented(request))
            if key is None:
                raise Unauthenticated(
                    "The API key is missing or not valid. Send it as 'Authorization: Bearer <key>'.",
                    code="invalid_api_key",
                )
            if key.role is not role:
                raise Forbidden(
                    f"This call needs a key with the role '{role}'; this one has '{key.role}'.",
                    code="insufficient_role",
                )
            return key

        return guard


def _presented(request: Request) -> str:
    values = request.headers.getlist("authorization")
    scheme, _, secret = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return secret.strip() if scheme.lower() == "bearer" else ""
