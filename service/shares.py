"""Who answers which share of the traffic: a change of the route, checked. Pure."""

from __future__ import annotations

from typing import Any, TypedDict

import pydantic

from service.errors import BadRequest, Conflict
from serving.contracts import Route

PLACES = ("candidate", "baseline")


class Split(TypedDict, total=False):
    """What changes; what is not named stays as it is. A place that is emptied (None) loses its share."""

    candidate: str | None
    candidate_share: float
    baseline: str | None
    baseline_share: float


def split(route: Route, changes: Split) -> Route:
    """The route with the changes, still of the same generation.

    Raises `BadRequest` for shares that do not fit together, `Conflict` for a candidate that answers everybody already.
    """
    emptied = {f"{place}_share": 0.0 for place in PLACES if changes.get(place, "") is None}
    try:
        new = Route.model_validate(route.model_dump() | emptied | changes)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or None
        reason = fault["msg"].removeprefix("Value error, ")
        raise BadRequest(f"The shares do not fit: {reason}.", param=field, code="invalid_value") from error
    if new.candidate == new.stable and new.candidate != route.candidate:
        raise Conflict(f"{new.candidate} already answers everybody.", param="candidate", code="already_current")
    return new


def of(route: Route) -> dict[str, Any]:
    """For the audit."""
    return route.model_dump(include=set(Split.__annotations__))
