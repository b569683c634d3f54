"""What an operator may set about when rounds start and who must agree: the section `[rounds]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from service.section import Section
from service.triggers.cron import parse


def _readable(text: str) -> str:
    parse(text)  # raises ValueError naming the field that it cannot read
    return text


class RoundSettings(Section):
    min_users: int = Field(default=0, ge=0, description="whose votes a round needs at least; imported pairs have none")
    min_apps: int = Field(default=0, ge=0, description="whose users a round needs at least")
    new_pairs: int | None = Field(
        default=None, ge=2, description="a round starts by itself when so many new pairs are there"
    )
    every_hours: float | None = Field(
        default=None, gt=0, description="... so long after the round before was asked for"
    )
    cron: Annotated[str, AfterValidator(_readable)] | None = Field(
        default=None, description="... at such times, UTC: minute hour day month weekday, as in '0 3 * * 1-5'"
    )
    rest_hours: float = Field(
        default=1.0, ge=0, description="none starts by itself so soon after one that ended without a new adapter"
    )
    approval: Literal["never", "always", "when_flagged"] = Field(
        default="never", description="whether an operator must agree before a candidate answers anybody"
    )
    patience_minutes: float = Field(
        default=15, gt=0,
        description="how long a candidate waits for replicas, or an object store, before its round ends failed",
    )  # fmt: skip
    max_lost: int = Field(
        default=3, ge=1,
        description="so many replicas in a row may die, or fall silent, that were asked about a candidate: it may be why",
    )  # fmt: skip
    flagged_users: int = Field(default=5, ge=0, description="fewer users than that in a round flag it")
