"""A suspicion as operators see it: whose votes are held back, why, and what was decided."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["held", "released", "dropped"]


class Held(BaseModel):
    """An item of the quarantine. Its votes count in no pair while it is held, and never once it is dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    kind: str  # burst, flips, user_dominance, phrase_dominance
    app: str
    user: str
    why: str
    evidence: dict[str, Any]
    status: Status
    votes: int
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None
