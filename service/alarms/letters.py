"""What a webhook is sent: the alarm as JSON or as a line of chat, with an id to know repetitions by, and a signature.

Pure. The signature covers the time too, so that an old letter cannot be sent again by somebody else:

    heliotrope-signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" under the secret>
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.alarms.bell import Alarm

ID_HEADER = "heliotrope-alarm-id"
SIGNATURE_HEADER = "heliotrope-signature"
MOST_CHARACTERS = 3000  # of a text that Slack shows as one message


@dataclass(frozen=True)
class Letter:
    body: bytes
    headers: Mapping[str, str]


def letter(alarm: Alarm, *, format: Literal["json", "slack"], secret: str | None, now_seconds: int) -> Letter:
    """The alarm for one webhook. The same alarm has the same id each time that it is sent."""
    said = _in_slack(alarm) if format == "slack" else _in_full(alarm)
    body = json.dumps(said, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", ID_HEADER: _id(alarm)}
    if secret is not None:
        headers[SIGNATURE_HEADER] = signature(body, secret, now_seconds)
    return Letter(body, headers)


def signature(body: bytes, secret: str, now_seconds: int) -> str:
    """What a receiver computes too; it compares in constant time and refuses a `t` that is minutes old."""
    signed = hmac.new(secret.encode(), f"{now_seconds}.".encode() + body, hashlib.sha256)
    return f"t={now_seconds},v1={signed.hexdigest()}"


def _id(alarm: Alarm) -> str:
    return f"alarm-{alarm.seq}"


def _in_full(alarm: Alarm) -> dict[str, object]:
    told = alarm.model_dump(mode="json", include={"at", "kind", "subject", "message", "detail"})
    return {"id": _id(alarm), **told}


def _in_slack(alarm: Alarm) -> dict[str, object]:
    """Slack, Mattermost and their like. What an adapter or a user is called must not become markup or a mention."""
    message = f"*{alarm.kind}* {alarm.subject}: {alarm.message}"
    escaped = message.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": escaped[:MOST_CHARACTERS]}
