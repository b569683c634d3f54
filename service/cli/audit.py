"""`audit`: who changed what, whether the log is as it was written, and the log itself to be kept elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect, session
from service.errors import BadRequest
from service.terminal import moment, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.contracts import AuditEntry

AUDIT = "/ops/audit"

app = typer.Typer(help="Who changed what, when and why: a log in which each entry vouches for all before it.")


@app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="List so many entries, the newest first.")] = 100,
    after: Annotated[int | None, typer.Option(min=0, help="List what came before this entry.")] = None,
    as_json: Json = False,
) -> None:
    """Who changed what, when and why; newest first."""
    if context.invoked_subcommand is None:
        remote = connect(context, as_json)
        query = {"limit": str(limit), "after": None if after is None else str(after)}
        remote.show(remote.client.get(AUDIT, **query), _entries)


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, metavar="FILE", help="An export, instead of the service."),
    ] = None,
    kept: Annotated[
        str | None, typer.Option(help="The last digest of an earlier check: without one, nobody can see a missing end.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no entry was changed or left out. Exits with 1 when one was."""
    if kept is not None and (len(kept) != 64 or set(kept) - set("0123456789abcdef")):
        raise typer.BadParameter("it must be 64 hex digits", param_hint="--kept")
    if file is None:
        remote = connect(context, as_json)
        found = remote.client.get(f"{AUDIT}/verify", kept=kept).data
    else:
        session(context).as_json = as_json
        found = _of_file(file, kept)
    said = f"{found['entries']} entries are as they were written; the last digest is {found['digest']}"
    typer.echo(json.dumps(found) if as_json else said)
    if found["fault"] is not None:
        if not as_json:
            typer.echo(f"error: {found['fault']}", err=True)
        raise typer.Exit(1)


@app.command()
def export(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, metavar="FILE", help="By default stdout.")
    ] = None,
) -> None:
    """The whole log as JSON lines, the oldest entry first. Keep it where nobody who changes things can change it."""
    from training.files import whole_file

    lines = connect(context).client.lines(f"{AUDIT}/export")
    if out is None:
        for line in lines:
            typer.echo(line.decode(), nl=False)
        return
    try:
        with whole_file(out) as partial, partial.open("wb") as file:
            file.writelines(lines)
    except OSError as error:
        raise BadRequest(f"{out} cannot be written: {error.strerror}.", code="unwritable_file") from error


def _of_file(file: Path, kept: str | None) -> dict[str, Any]:
    from service.store.audit_chain import Chain

    chain = Chain(kept).follow(_read(file)).ended()
    return {"entries": chain.entries, "digest": chain.digest, "fault": chain.fault}


def _read(file: Path) -> Iterator[AuditEntry]:
    from service.contracts import AuditEntry

    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                yield AuditEntry.model_validate_json(line)
            except ValueError as error:
                raise BadRequest(f"{file}, line {number}: no entry of an audit log.", code="invalid_entry") from error


def _entries(data: dict[str, Any]) -> RenderableType:
    return table(
        ("seq", "at", "who", "action", "subject", "detail"),
        (
            (
                entry["seq"],
                moment(entry["at"]),
                entry["who"],
                entry["action"],
                entry["subject"],
                _detail(entry["detail"]),
            )
            for entry in data["data"]
        ),
        wrap=("detail",),
    )


def _detail(detail: dict[str, Any]) -> str | None:
    shown = (f"{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in detail.items() if v is not None)
    return "  ".join(shown) or None
