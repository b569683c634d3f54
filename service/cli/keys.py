"""`keys`: who may chat and vote, and who may operate."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.remote import Json, connect
from service.client import in_path
from service.terminal import dim, facts, stack, table

app = typer.Typer(no_args_is_help=True, help="Keys: list, issue, revoke.")


@app.command("list")
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """The keys that are valid."""
    remote = connect(context, as_json)
    headers = ("id", "role", "app")
    remote.show(
        remote.client.get("/ops/keys"),
        lambda data: table(headers, ([key[name] for name in headers] for key in data["data"])),
    )


@app.command()
def issue(
    context: typer.Context,
    app: Annotated[str, typer.Argument(help="The application, or the operator, that the key is for.")],
    role: Annotated[str, typer.Option(help="'app' chats and votes, 'operator' does the rest.")] = "app",
    as_json: Json = False,
) -> None:
    """Make a new key and show it, this once."""
    remote = connect(context, as_json)
    remote.show(
        remote.client.post("/ops/keys", {"role": role, "app": app}),
        lambda data: stack(
            facts({**data["key"], "secret": data["secret"]}),
            dim("Keep the secret now: it is stored only as a hash and is never shown again."),
        ),
    )


@app.command()
def revoke(context: typer.Context, id: Annotated[str, typer.Argument(help="As `keys list` shows it.")]) -> None:
    """From now on the key opens nothing."""
    connect(context).client.delete(f"/ops/keys/{in_path(id)}")
    typer.echo(f"key {id} is revoked")
