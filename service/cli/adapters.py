"""`adapters`, `promote` and `rollback`: what was published, and who answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.client import in_path
from service.terminal import facts, moment, stack, table
from service.watch import swap_line, verdict_table

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, help="Published adapters: list, show.")

Reason = Annotated[str | None, typer.Option(help="Why; kept in the audit.")]


@app.command("list")
def list_adapters(context: typer.Context, as_json: Json = False) -> None:
    """All published adapters."""
    remote = connect(context, as_json)
    remote.show(
        remote.client.get("/ops/adapters"),
        lambda data: table(
            ("name", "parent", "round", "published"),
            ((a["name"], a["parent"], a["round"], moment(a["created_at"])) for a in data["data"]),
        ),
    )


@app.command()
def show(context: typer.Context, name: str, as_json: Json = False) -> None:
    """One adapter: where it comes from and what the gate said of it."""
    remote = connect(context, as_json)
    remote.show(remote.client.get(f"/ops/adapters/{in_path(name)}"), _adapter)


def promote(
    context: typer.Context,
    name: str,
    expect: Annotated[
        str | None, typer.Option(help="Refuse when another adapter than this one answers by now.")
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Let this adapter answer: every replica loads and checks it first, then all swap."""
    remote = connect(context, as_json)
    body = {"expected_current": expect, "reason": reason}
    remote.show(remote.client.post(f"/ops/adapters/{in_path(name)}/promote", body), _changed)


def rollback(
    context: typer.Context,
    to: Annotated[str | None, typer.Option(help="An adapter, or 'base'. Without it: the previous one.")] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Let the previous adapter answer again."""
    remote = connect(context, as_json)
    remote.show(remote.client.post("/ops/rollback", {"to": to, "reason": reason}), _changed)


def _adapter(data: dict[str, Any]) -> RenderableType:
    return stack(
        facts({
            "name": data["name"],
            "parent": data["parent"],
            "round": data["round"],
            "published": moment(data["created_at"]),
            "pairs": data["pair_digest"],
            "weights": data["weights_sha256"],
            "manifest": data["manifest_sha256"],
            "directory": data["directory"],
        }),
        verdict_table(data["verdict"]) if data["verdict"] else None,
    )  # fmt: skip


def _changed(data: dict[str, Any]) -> str:
    route = data["route"]
    return (
        f"{route['stable']} answers (generation {route['generation']}), {swap_line(data)}; "
        f"previous is {route['previous'] or 'none'}"
    )
