"""`alarms`: what operators were told, and whether the webhooks took it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.terminal import moment, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def alarms(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    after: Annotated[int | None, typer.Option(min=0, help="List what is older than this alarm.")] = None,
    as_json: Json = False,
) -> None:
    """What went wrong, or nearly did; newest first."""
    remote = connect(context, as_json)
    older = None if after is None else str(after)
    remote.show(remote.client.get("/ops/alarms", limit=str(limit), after=older), _alarms)


def _alarms(data: dict[str, Any]) -> RenderableType:
    return table(
        ("alarm", "at", "kind", "about", "message", "delivered", "trouble"),
        (
            (
                alarm["seq"],
                moment(alarm["at"]),
                alarm["kind"],
                alarm["subject"],
                alarm["message"],
                alarm["delivered_at"] and moment(alarm["delivered_at"]),
                alarm["trouble"],
            )
            for alarm in data["data"]
        ),
        wrap=("message", "trouble"),
    )
