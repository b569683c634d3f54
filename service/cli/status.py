"""`status`: how the service is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from service.cli.preferences import new_pairs
from service.cli.remote import Json, connect
from service.terminal import facts, moment, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def status(context: typer.Context, as_json: Json = False) -> None:
    """Who answers, what each replica holds, and what a round would learn from."""
    remote = connect(context, as_json)
    remote.show(remote.client.get("/ops/status"), _status)


def _status(data: dict[str, Any]) -> RenderableType:
    route, running = data["route"], data["running_round"]
    return stack(
        facts({
            "model": data["model"],
            "answers": f"{route['stable']} (generation {route['generation']})",
            "previous": route["previous"],
            "candidate": _place(route, "candidate"),
            "baseline": _place(route, "baseline"),
            "round": f"{running['n']} is {running['state']}" if running else None,
            "canary": _canary(data["canary"]),
            "paused": _pause(data["pause"]),
            "new pairs": new_pairs(data["funnel"]),
        }),
        table(
            ("replica", "answers", "generation", "loaded", "missing", "in flight", "waiting", "unlogged", "trouble"),
            (
                (
                    replica["replica"],
                    replica["stable"],
                    replica["generation"],
                    ", ".join(replica["loaded"]) or None,
                    ", ".join(sorted({*replica["wanted"]} - {*replica["loaded"]})) or None,
                    _in_flight(replica),
                    replica["waiting"],
                    replica["unlogged"] or None,  # answers that could not be recorded
                    _trouble(replica, route["generation"]),
                )
                for replica in data["replicas"]
            ),
            wrap=("loaded", "missing", "in flight", "trouble"),
        ),
        "\n".join(f"a replica does not answer: {why}" for why in data["silent"]) or None,
        data["trouble"] and f"no replica is listed: {data['trouble']}",
    )  # fmt: skip


def _canary(canary: dict[str, Any] | None) -> str | None:
    if canary is None:
        return None
    begun = "no step has begun" if canary["share"] is None else (
        f"step {canary['steps_begun']}, {canary['share']:.4g} of the users, {canary['requests']} requests"
    )  # fmt: skip
    return begun + (f"; waits for {canary['waits_for']}" if canary["waits_for"] else "")


def _pause(pause: dict[str, Any] | None) -> str | None:
    if pause is None:
        return None
    return f"by {pause['who']} at {moment(pause['at'])}" + (f": {pause['reason']}" if pause["reason"] else "")


def _place(route: dict[str, Any], place: str) -> str | None:
    return route[place] and f"{route[place]} ({route[f'{place}_share']:.4g} of the requests)"


def _in_flight(replica: dict[str, Any]) -> str:
    """Their number, and of those that run on another adapter than the one that answers, which."""
    others = ", ".join(f"{n} on {name}" for name, n in replica["in_flight"].items() if name != replica["stable"])
    return f"{sum(replica['in_flight'].values())}" + (f" ({others})" if others else "")


def _trouble(replica: dict[str, Any], generation: int) -> str | None:
    behind = replica["generation"] < generation
    return replica["error"] or (f"has not heard of generation {generation} yet" if behind else None)
