"""`users erase`, `backup` and `restore`: what is kept of people, and what outlives this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from service.cli.remote import Json, connect, session
from service.client import in_path
from service.terminal import dim, facts, stack

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.keeping.archive import Manifest
    from service.settings import Settings

users = typer.Typer(no_args_is_help=True, help="People: erase what is kept of one.")


@users.command()
def erase(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="As the apps name them.")],
    app: Annotated[str | None, typer.Option(help="Only what this app has sent.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase what a person asked, was answered and said, and all that was made of it. It cannot be undone."""
    remote = connect(context, as_json)
    if not yes:
        where = f"in {app}" if app else "in all apps"
        typer.confirm(f"Erase all that is kept of '{user}' {where}?", abort=True, err=True)
    query = f"?{urlencode({'app': app})}" if app else ""
    remote.show(remote.client.delete(f"/ops/users/{in_path(user)}{query}"), _erased)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="A new file; it will hold keys and people's words.")],
) -> None:
    """Write the store, the adapters and this machine's keys into one file. The service may run meanwhile."""
    settings = _settings(context)
    from service.keeping.backup import back_up

    made = back_up(settings, file)
    typer.echo(f"{file}: {_contents(made)}")


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="As `backup` wrote it.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Give up the store that is there, and what later rounds left.")
    ] = False,
) -> None:
    """Make this machine's service the one of a backup. Nothing may run; `up` then goes on from there."""
    settings = _settings(context)
    from service.keeping import backup

    made = backup.restore(settings, file, replace=replace)
    typer.echo(f"restored from {made.made_at:%Y-%m-%d %H:%M} UTC: {_contents(made)}")


def _settings(context: typer.Context) -> Settings:
    current = session(context)
    from service.settings import load

    return load(current.config, overrides={"state": current.folder})


def _contents(manifest: Manifest) -> str:
    adapters = {name.split("/")[1] for name in manifest.files if name.startswith("adapters/")}
    return f"the store with schema {manifest.schema_version}, {len(adapters)} adapter(s)"


def _erased(erased: dict[str, Any]) -> RenderableType:
    learned = erased["adapters"]
    advice = (
        "These adapters have learned from it; a model does not forget. `heliotrope rollback --to` leads behind them."
        if learned
        else "No adapter has learned from it."
    )
    counts = ("completions", "votes", "pairs", "quarantine", "snapshot_rows")
    shown: dict[str, Any] = {name.replace("_", " "): erased[name] for name in counts}
    shown |= {name: ", ".join(map(str, erased[name])) or "none" for name in ("rounds", "adapters")}
    if erased["cancelled_round"] is not None:
        shown["cancelled round"] = erased["cancelled_round"]
    return stack(facts(shown), dim(advice))
