"""What an operator may set about how much a key asks for. The section `[limits]` holds for all keys; a key may have its own."""

from __future__ import annotations

from pydantic import Field

from service.section import Section


class LimitSettings(Section):
    """None: no limit; of a key: what the settings say. Each replica enforces its share."""

    requests_per_minute: int | None = Field(default=None, ge=1, description="chats that one key may ask for")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="read and written for one key")
    concurrent_requests: int | None = Field(default=None, ge=1, description="chats of one key at a time")

    def overridden_by(self, own: LimitSettings) -> LimitSettings:
        return self.model_copy(update=own.model_dump(exclude_none=True))


NO_LIMITS = LimitSettings()
