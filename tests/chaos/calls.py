"""The calls that users of a chaos run make, and what an answer to each means."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.chaos.history import Deed, Op, Outcome

PREFIX = "/v1"  # under which Ray Serve runs the chat application
_PATHS = {
    Op.ASK: f"{PREFIX}/chat/completions",
    Op.VOTE: f"{PREFIX}/feedback",
    Op.RETRACT: f"{PREFIX}/feedback/",
    Op.IMPORT: "/ops/preferences/import",
}


class Call(NamedTuple):
    method: str
    path: str
    data: str | None

    @classmethod
    def of(cls, deed: Deed) -> Call:
        if deed.op is Op.RETRACT:
            return cls("DELETE", _PATHS[deed.op] + deed.body["feedback_id"], None)
        if deed.op is Op.IMPORT:
            return cls("POST", _PATHS[deed.op], "\n".join(json.dumps(row) for row in deed.body["rows"]))
        return cls("POST", _PATHS[deed.op], json.dumps(deed.body))


class Answer(NamedTuple):
    outcome: Outcome
    body: dict[str, Any]
    fault: str = ""


def judge(deed: Deed, status: int, body: dict[str, Any]) -> Answer:
    """What an answer means to whoever called."""
    code = (body.get("error") or {}).get("code")
    if (status, code) == (503, "storage_unavailable"):
        return Answer(Outcome.UNKNOWN, {})
    if (status, code) == (409, "idempotency_conflict") and contradicts(deed):
        return Answer(Outcome.REFUSED, {})
    if status in (200, 201, 204) and not contradicts(deed):
        names = () if body.get("rateable") is False else ("id", "feedback_id")  # such an answer need not be stored
        return Answer(Outcome.ACKNOWLEDGED, {name: body[name] for name in names if name in body})
    return Answer(Outcome.BROKEN, {}, f"{deed.op}: {status} {body}")


def repeatable(deed: Deed) -> bool:
    """Whether a second call does the same as one; a vote without an id of its user's would be a second vote."""
    return deed.op in (Op.RETRACT, Op.IMPORT) or "feedback_id" in deed.body


def contradicts(deed: Deed) -> bool:
    """Whether it is a vote under the id of another."""
    return deed.op is Op.VOTE and deed.body.get("feedback_id", own_id(deed.token)) != own_id(deed.token)


def own_id(token: str) -> str:
    return f"id-{token}"


def feedback_id(vote: Deed) -> str:
    """Of an acknowledged vote: the user's own or the one it was given."""
    return vote.answers[0]["feedback_id"]
