"""Tokens for the browser: a web page votes on one completion, as one user, without the app's key.

A token is a JWT (RFC 7519, HS256), signed with a secret that all replicas share. It is kept nowhere: it says itself
what it grants and until when.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import jwt
from pydantic import BaseModel, ConfigDict, Field

from service.errors import BadRequest, Forbidden, Unauthenticated
from service.votes import CompletionId, FeedbackBody, User

SECRET = "feedback_tokens"  # the name of what tokens are signed with, among the store's secrets
_AUDIENCE = "heliotrope/feedback"
_ALGORITHM = "HS256"
_REQUIRED = ["aud", "exp", "app", "completion_id"]


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokenBody(_Contract):
    """`POST /v1/feedback/tokens`. The completion may still be on its way: who votes must wait for it, not who asks."""

    completion_id: CompletionId
    user: User | None = None
    expires_in_seconds: int | None = Field(default=None, ge=1)  # None: as long as the settings say


class Token(_Contract):
    token: str
    expires_at: datetime


@dataclass(frozen=True)
class Grant:
    """What the bearer of a token may do: vote on one completion as one user, and take these votes back."""

    app: str
    completion_id: str
    user: str | None

    def admit(self, body: FeedbackBody) -> FeedbackBody:
        """The vote as this user's. Raises `Forbidden` for another completion or another user."""
        for field, choice in (("completion_id", body.choice), ("preferred_over", body.rival)):
            if choice is not None and choice[0] != self.completion_id:
                raise Forbidden(
                    f"This token is for the completion '{self.completion_id}' only. Ask for a token for the other one.",
                    param=field,
                    code="token_other_completion",
                )
        if body.user not in (None, self.user):
            raise Forbidden(
                "This token is for another user. Leave 'user' out: the token says who votes.",
                param="user",
                code="token_other_user",
            )
        return body.model_copy(update={"user": self.user})


class Secrets(Protocol):
    """Of `service/store/secrets.py`: the same answer to the same name, in every process."""

    async def get(self, name: str) -> str: ...


class Tokens:
    """`longest_seconds` is also how long a token lives by default."""

    def __init__(self, secrets: Secrets, longest_seconds: int) -> None:
        self._secrets = secrets
        self._longest_seconds = longest_seconds

    async def issue(self, app: str, body: TokenBody) -> Token:
        """Raises `BadRequest` where a longer life is asked for than the settings allow."""
        seconds = body.expires_in_seconds or self._longest_seconds
        if seconds > self._longest_seconds:
            raise BadRequest(
                f"Field 'expires_in_seconds': must be at most {self._longest_seconds}. Ask for less, or raise "
                "server.feedback_token_seconds.",
                param="expires_in_seconds",
                code="invalid_value",
            )
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        claims = {
            "aud": _AUDIENCE,
            "exp": expires_at,
            "app": app,
            "completion_id": body.completion_id,
            "user": body.user,
        }
        return Token(token=jwt.encode(claims, await self._secrets.get(SECRET), _ALGORITHM), expires_at=expires_at)

    async def open(self, token: str) -> Grant:
        """Raises `Unauthenticated`: code `token_expired`, or `invalid_token` where it is none of ours."""
        secret = await self._secrets.get(SECRET)
        try:
            claims = jwt.decode(token, secret, [_ALGORITHM], options={"require": _REQUIRED}, audience=_AUDIENCE)
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated(
                "This feedback token has expired. Ask the app's backend for a new one.", code="token_expired"
            ) from error
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(
                "This feedback token is not valid. Ask the app's backend for one (POST /v1/feedback/tokens).",
                code="invalid_token",
            ) from error
        return Grant(app=claims["app"], completion_id=claims["completion_id"], user=claims["user"])


def looks_like_token(presented: str) -> bool:
    """Three parts with dots between them, which no API key has."""
    return presented.count(".") == 2
