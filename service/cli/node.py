"""`up`, `down`, `demo` and `doctor`: what is done on this machine rather than asked of a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import terminal
from service.cli.remote import Json, Session, session
from service.client import running

if TYPE_CHECKING:
    from service.settings import Settings


def up(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="'seedling', a directory, or a Hugging Face causal LM.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="How many engines answer.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it answers; `down` stops it.")] = False,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Answer without keys. For a laptop only.")
    ] = False,
) -> None:
    """Start the service on this machine and stay until ^C. --state and --config may be given here too."""
    settings = _settings(session(context), {
        "model": {"name": model},
        "server": {"host": host, "port": port, "insecure_no_auth": insecure_no_auth or None},
        "serving": {"replicas": replicas},
    })  # fmt: skip
    from service import node

    node.up(settings, detach=detach)


def down(context: typer.Context) -> None:
    """Stop the service of the state folder. --state may be given here too."""
    state = session(context).folder
    from service import node

    typer.echo("stopped" if node.down(state) else f"nothing runs in {state}")


def demo(
    context: typer.Context,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the figures there too.")
    ] = None,
) -> None:
    """See the whole loop in a few minutes: chats, votes, a round, a hot swap, a rollback."""
    settings = _settings(session(context), {})
    from service.demo.story import tell

    tell(settings, json_file)


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """What this machine lacks to run the service, and the remedy. Exits with 1 when something is missing."""
    current = session(context)
    current.as_json = as_json
    settings = _settings(current, {})
    from service.doctor import examine

    findings = examine(settings, running(settings.state))
    if as_json:
        typer.echo(json.dumps({"findings": [finding.row() for finding in findings]}, ensure_ascii=False))
    else:
        rows = ((finding.name, finding.outcome, finding.found, finding.remedy) for finding in findings)
        terminal.console().print(terminal.table(("what", "", "found", "remedy"), rows, wrap=("found", "remedy")))
    if any(finding.outcome == "missing" for finding in findings):
        raise typer.Exit(1)


def _settings(current: Session, flags: dict[str, Any]) -> Settings:
    """From the file, the environment and the flags. The state folder is the one that every other command uses."""
    from service.settings import load

    return load(current.config, overrides={"state": current.folder, **flags})
