"""`quarantine`: votes that are held back, and the word on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.terminal import dim, moment, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, help="Votes that came in a way that people do not vote in.")

Id = Annotated[int, typer.Argument(min=1, help="As `quarantine list` shows it.")]
Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the audit.")]


@app.command("list")
def list_held(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="'held', 'released' or 'dropped'; by default all.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="List what follows this item.")] = None,
    as_json: Json = False,
) -> None:
    """Whose votes are held back and why, the newest first."""
    remote = connect(context, as_json)
    following = None if after is None else str(after)
    remote.show(remote.client.get("/ops/quarantine", status=status, after=following), _items)


@app.command()
def release(context: typer.Context, id: Id, reason: Reason = None, as_json: Json = False) -> None:
    """Let the votes count."""
    _decide(context, id, "release", reason, as_json)


@app.command()
def drop(context: typer.Context, id: Id, reason: Reason = None, as_json: Json = False) -> None:
    """Never let the votes count."""
    _decide(context, id, "drop", reason, as_json)


def _decide(context: typer.Context, id: int, word: str, reason: str | None, as_json: bool) -> None:
    remote = connect(context, as_json)
    answer = remote.client.post(f"/ops/quarantine/{id}/{word}", {"reason": reason})
    remote.show(answer, lambda item: f"item {id} is {item['status']}: {item['votes']} votes of {item['user']}")


def _items(data: dict[str, Any]) -> RenderableType:
    headers = ("id", "status", "kind", "app", "user", "votes", "since", "why")
    rows = ({**item, "since": moment(item["created_at"])} for item in data["data"])
    made = table(headers, ([row[name] for name in headers] for row in rows), wrap=("why",))
    return stack(made, None if data["next"] is None else dim(f"more: --after {data['next']}"))
