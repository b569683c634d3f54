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
    flagged_users: int = Field(default=5, ge=0, description="fewer users than that in a round flag it")
