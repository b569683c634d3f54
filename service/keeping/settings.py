"""What an operator may set about how long data is kept: the section `[retention]`. None keeps for ever."""

from __future__ import annotations

from pydantic import Field

from service.section import Section


class RetentionSettings(Section):
    completion_days: int | None = Field(
        default=None, ge=1, description="texts and token ids of answers; the row stays as long as votes speak of it"
    )
    feedback_days: int | None = Field(default=None, ge=1, description="votes with their comments and corrections")
    snapshot_days: int | None = Field(default=None, ge=1, description="snapshots of rounds that are over")
    adapters_kept: int | None = Field(
        default=None,
        ge=1,
        description="newest adapters whose files are kept; older ones as long as something needs them",
    )
    sweep_minutes: float = Field(default=60.0, gt=0, description="between looks for what is past its time")
