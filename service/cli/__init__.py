"""The command line: one file a noun, all commands listed here. Imports neither torch, vLLM, Ray nor the store.

Operators' commands speak HTTP only. `up`, `down` and `demo` import what they need when they run.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from service.cli import adapters, audit, evidence, keeping, keys, learning, preferences, quarantine, rounds
from service.cli.adapters import promote, rollback, split
from service.cli.alarms import alarms
from service.cli.chat import chat
from service.cli.exchange import export, import_file
from service.cli.node import demo, doctor, down, up
from service.cli.plan import plan_command
from service.cli.remote import Session, report
from service.cli.status import status
from service.errors import HeliotropeError
from training.formats import SHAPES_LISTED

ANYWHERE = ("--url", "--state", "--config")
OURS = frozenset({"service", "serving", "training"})


class Root(TyperGroup):
    """Takes the global options wherever they stand, and ends every failure in one line and a status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, global_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeliotropeError as error:
            report(error, as_json=ctx.obj.as_json)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in OURS:
                raise
            missing = HeliotropeError(
                f"The package '{error.name}' is not installed. Install heliotrope with its extra 'cpu' or 'gpu'; "
                "`heliotrope doctor` shows all that is missing.",
                code="package_missing",
            )
            report(missing, as_json=ctx.obj.as_json)
        raise typer.Exit(1)


def global_first(args: list[str]) -> list[str]:
    """`status --url X` as `--url X status`. What stands behind `--` stays where it is."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in ANYWHERE:
            front += [word, *islice(words, 1)]
        elif word.startswith(tuple(f"{option}=" for option in ANYWHERE)):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="--url, --state and --config may stand anywhere in a line. HELIOTROPE_KEY holds the key of a remote service.",
)


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="HELIOTROPE_URL", help="The service to speak with; by default the one of the state folder."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(envvar="HELIOTROPE_STATE", file_okay=False, help="The state folder, where `up` keeps all it has."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="HELIOTROPE_CONFIG",
            exists=True,
            dir_okay=False,
            help="Settings; by default ./heliotrope.toml if there.",
        ),
    ] = None,
) -> None:
    """Keeps a deployed language model turned towards the people who use it."""
    if url is not None and not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"'{url}' must begin with http:// or https://", param_hint="--url")
    context.obj = Session(url, state, config)


for command in (up, down, status, chat):
    app.command()(command)
for command in (evidence.report, evidence.replay, evidence.pairs):
    rounds.app.command()(command)
app.add_typer(rounds.app, name="round")
app.add_typer(learning.canary, name="canary")
for command in (learning.pause, learning.resume, learning.triggers):
    app.command()(command)
adapters.app.command()(evidence.notes)
app.add_typer(adapters.app, name="adapters")
for command in (promote, rollback, split):
    app.command()(command)
app.command()(evidence.trace)
app.add_typer(audit.app, name="audit")
app.command()(alarms)
app.add_typer(preferences.app, name="preferences")
app.add_typer(quarantine.app, name="quarantine")
app.command("import", epilog=SHAPES_LISTED)(import_file)
app.command()(export)
app.add_typer(keys.app, name="keys")
app.add_typer(keeping.users, name="users")
for command in (keeping.backup, keeping.restore, demo, doctor):
    app.command()(command)
app.command("plan")(plan_command)


def main() -> None:
    app(prog_name="heliotrope")
