"""`keys`: who may chat and vote, and who may operate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.client import in_path
from service.terminal import dim, facts, stack, table

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")

app = typer.Typer(no_args_is_help=True, help="Keys: list, issue, revoke.")


@app.command("list")
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """The keys that are valid."""
    remote = connect(context, as_json)
    headers = ("id", "role", "app", *LIMITS)
    remote.show(
        remote.client.get("/ops/keys"),
        lambda data: table(
            [header.replace("_", " ") for header in headers],
            ([(key | key["limits"])[name] for name in headers] for key in data["data"]),
        ),
    )


@app.command()
def issue(
    context: typer.Context,
    app: Annotated[str, typer.Argument(help="The application, or the operator, that the key is for.")],
    role: Annotated[
        str, typer.Option(help="'app' chats and votes, 'metrics' reads GET /metrics, 'operator' does the rest.")
    ] = "app",
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Chats. Default: [limits].")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Read and written. Default: [limits].")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(min=1, help="Chats at a time. Default: [limits].")] = None,
    as_json: Json = False,
) -> None:
    """Make a new key and show it, this once."""
    remote = connect(context, as_json)
    given = dict(zip(LIMITS, (requests_per_minute, tokens_per_minute, concurrent_requests), strict=True))
    limits = {name: limit for name, limit in given.items() if limit is not None}
    remote.show(
        remote.client.post("/ops/keys", {"role": role, "app": app} | ({"limits": limits} if limits else {})),
        lambda data: stack(
            facts(_shown(data["key"]) | {"secret": data["secret"]}),
            dim("Keep the secret now: it is stored only as a hash and is never shown again."),
        ),
    )


def _shown(key: dict[str, Any]) -> dict[str, Any]:
    """Limits that it has of its own are facts like the others."""
    own = {name.replace("_", " "): limit for name, limit in key["limits"].items() if limit is not None}
    return {name: value for name, value in key.items() if name != "limits"} | own


@app.command()
def revoke(context: typer.Context, id: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """From now on the key opens nothing."""
    connect(context).client.delete(f"/ops/keys/{in_path(id)}")
    typer.echo(f"key {id} is revoked")
