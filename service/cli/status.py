"""`status` and `audit`: how the service is, and who changed what it serves."""

from __future__ import annotations

import json
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


def audit(context: typer.Context, as_json: Json = False) -> None:
    """Who changed what is served, when and why; newest first."""
    remote = connect(context, as_json)
    remote.show(remote.client.get("/ops/audit"), _audit)


def _status(data: dict[str, Any]) -> RenderableType:
    route, running = data["route"], data["running_round"]
    return stack(
        facts({
            "model": data["model"],
            "answers": f"{route['stable']} (generation {route['generation']})",
            "previous": route["previous"],
            "candidate": route["candidate"],
            "round": f"{running['n']} is {running['state']}" if running else None,
            "new pairs": new_pairs(data["funnel"]),
        }),
        table(
            ("replica", "answers", "generation", "loaded", "in flight", "unlogged", "trouble"),
            (
                (
                    replica["replica"],
                    replica["stable"],
                    replica["generation"],
                    ", ".join(replica["loaded"]) or None,
                    sum(replica["in_flight"].values()),
                    replica["unlogged"] or None,  # answers that could not be recorded
                    replica["error"],
                )
                for replica in data["replicas"]
            ),
            wrap=("loaded", "trouble"),
        ),
    )  # fmt: skip


def _audit(data: dict[str, Any]) -> RenderableType:
    return table(
        ("at", "who", "action", "subject", "detail"),
        (
            (moment(entry["at"]), entry["who"], entry["action"], entry["subject"], _detail(entry["detail"]))
            for entry in data["data"]
        ),
        wrap=("detail",),
    )


def _detail(detail: dict[str, Any]) -> str | None:
    shown = (f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in detail.items() if v is not None)
    return "  ".join(shown) or None
