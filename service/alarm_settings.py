"""What an operator may set about being told: the section `[alarms]`. URLs and the secret never show in logs or answers.

Beside the package and not in it: whoever reads settings, as the command line does, loads no database.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, SerializationInfo, field_serializer, field_validator

from service.section import Section

REVEALED = {"reveal_secrets": True}  # the context in which settings are written as JSON for another process of ours


class AlarmSettings(Section):
    webhooks: tuple[SecretStr, ...] = Field(
        default=(), description="https://... that each alarm is sent to; none by default"
    )
    format: Literal["json", "slack"] = Field(default="json", description="json: all of the alarm; slack: one text")
    secret: SecretStr | None = Field(
        default=None, description="signs what is sent, in the header heliotrope-signature; None: it is not signed"
    )
    timeout_seconds: float = Field(default=10.0, gt=0, description="that a webhook has to answer")
    give_up_hours: float = Field(default=24.0, gt=0, description="how long delivery of an alarm is tried")
    watch_seconds: float = Field(default=15.0, gt=0, description="between looks for what no single event tells")
    no_round_days: float | None = Field(
        default=None, gt=0, description="alarm when no round was promoted for so long; None: never"
    )
    drift_near: float = Field(
        default=0.8, gt=0, le=1, description="share of the gate's bound on the distance to the base that is near"
    )
    lag_seconds: float = Field(default=60.0, gt=0, description="how long a replica may serve an older route")
    free_bytes: int = Field(default=1 << 30, ge=0, description="of the state folder's disk; alarm below it")

    @field_validator("webhooks")
    @classmethod
    def _addresses(cls, webhooks: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for webhook in webhooks:
            parts = urlsplit(webhook.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("each webhook must be a URL that begins with https:// (or http://) and names a host")
        return webhooks

    @field_serializer("webhooks", "secret", when_used="json")
    def _hidden(self, value: Any, info: SerializationInfo) -> Any:
        secrets, revealed = value if isinstance(value, tuple) else (value,), info.context == REVEALED
        shown = [one and (one.get_secret_value() if revealed else str(one)) for one in secrets]
        return shown if isinstance(value, tuple) else shown[0]
