"""How the small API of the tests changes its route: by the real bodies and the real rules, without any replica."""

from __future__ import annotations

from typing import cast

from service import shares
from service.contracts import PromoteBody, RollbackBody, SplitBody
from service.errors import PreconditionFailed
from serving.contracts import Route


def promoted(route: Route, name: str, body: PromoteBody) -> Route:
    _require_stable(route, body.expected_current)
    return _answered_by(route, name)


def rolled_back(route: Route, body: RollbackBody) -> Route:
    to = body.to or route.previous
    assert to is not None
    _require_stable(route, body.expected_current)
    return _answered_by(route, to)


def split(route: Route, body: SplitBody) -> Route:
    changes = body.model_dump(include=set(shares.Split.__annotations__), exclude_unset=True)
    return shares.split(route, cast(shares.Split, changes))


def _answered_by(route: Route, name: str) -> Route:
    return Route(generation=route.generation + 1, stable=name, previous=route.stable)


def _require_stable(route: Route, expected: str | None) -> None:
    if expected not in (None, route.stable):
        raise PreconditionFailed(f"{route.stable} answers by now.", code="route_moved")
