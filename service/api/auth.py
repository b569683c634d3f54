"""Who calls, and may they? Keys in `Authorization: Bearer ...`, three roles, deny by default.

Where votes are taken, a token of `service/tokens.py` does in a key's place; nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from service.contracts import Key, Role
from service.errors import Forbidden, Unauthenticated
from service.store.keys import Keys
from service.tokens import Grant, Tokens, looks_like_token
from service.votes import FeedbackBody

Guard = Callable[[Request], Awaitable[Key]]


@dataclass(frozen=True)
class Voter:
    """An app with its key, or a web page with a token that the app has asked for."""

    app: str
    grant: Grant | None = None  # None: all that the app may

    def admit(self, body: FeedbackBody) -> FeedbackBody:
        """The vote as it is to be recorded. Raises `Forbidden` for what the token does not grant."""
        return body if self.grant is None else self.grant.admit(body)


class Doorman:
    """Makes the dependency that each route names. `insecure`: everybody may do everything, for a laptop."""

    def __init__(self, keys: Keys, *, insecure: bool) -> None:
        self._keys = keys
        self._insecure = insecure

    def allow(self, *roles: Role) -> Guard:
        """One of the roles will do."""

        async def guard(request: Request) -> Key:
            if self._insecure:
                return Key(id="none", role=roles[0], app="local")
            key = await self._keys.verify(_presented(request))
            if key is None:
                raise Unauthenticated(
                    "The API key is missing or not valid. Send it as 'Authorization: Bearer <key>'.",
                    code="invalid_api_key",
                )
            if key.role not in roles:
                needed = " or ".join(f"'{role}'" for role in roles)
                raise Forbidden(
                    f"This call needs a key with the role {needed}; this one has '{key.role}'.",
                    code="insufficient_role",
                )
            return key

        return guard

    def voter(self, tokens: Tokens) -> Callable[[Request], Awaitable[Voter]]:
        """Also where everybody may do everything: a page behaves there as it will behave with keys."""
        key_of = self.allow(Role.APP)

        async def guard(request: Request) -> Voter:
            presented = _presented(request)
            if looks_like_token(presented):
                grant = await tokens.open(presented)
                return Voter(grant.app, grant)
            return Voter((await key_of(request)).app)

        return guard


def _presented(request: Request) -> str:
    values = request.headers.getlist("authorization")
    scheme, _, secret = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return secret.strip() if scheme.lower() == "bearer" else ""
