"""`import` and `export`: preferences from a file, and into one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from service import terminal
from service.cli.remote import Json, connect
from service.client import Answer, Client, Refused, Unreachable
from service.errors import BadRequest
from service.exchange.exports import ExportFormat, Status
from service.terminal import stack, table
from training.files import whole_file
from training.formats import Format

if TYPE_CHECKING:
    from rich.console import RenderableType

IMPORT, EXPORT = "/ops/preferences/import", "/ops/preferences/export"
KIND = "application/octet-stream"  # the service looks into the file
SUMMARY = b'{"summary":'  # how the last line of an export begins, and no other


def import_file(
    context: typer.Context,
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="JSON lines (.gz too) or Parquet; '-' reads stdin.")],
    format: Annotated[
        Format | None, typer.Option(metavar="NAME", help="Of all rows, instead of what the first of them tell.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Import the good rows when some are not.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be imported, and import nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Import preferences from a file in one of the formats below; all of it, or nothing."""
    remote = connect(context, as_json)
    flags = {"skip_bad": skip_bad, "dry_run": dry_run}
    query = {"format": format} | {name: "true" if flag else None for name, flag in flags.items()}
    try:
        with _progress(file, quiet=as_json) as sent:
            answer = _upload(remote.client, file, sent, query)
    except Refused as refusal:
        if not as_json and refusal.answer.get("faults"):
            terminal.console(stderr=True).print(stack(_recognised(refusal.answer), _faults(refusal.answer)))
        raise
    remote.show(answer, _imported)


def export(
    context: typer.Context,
    format: Annotated[ExportFormat, typer.Option(help="What is to read it: TRL or OpenAI, or TRL's KTO.")] = "trl",
    status: Annotated[
        Status, typer.Option(help="What a round would learn now, what rounds have learned, or all there is.")
    ] = "open",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, metavar="FILE", help="By default stdout.")
    ] = None,
) -> None:
    """Export preferences with their texts, as JSON lines; of votes and of what was imported."""
    client = connect(context).client
    with ExitStack() as opened:
        try:
            into = sys.stdout.buffer if out is None else opened.enter_context(_whole(out))
            summary = _write(client, into, format=format, status=status)
        except OSError as error:
            if out is None:
                raise
            raise BadRequest(f"{out} cannot be written: {error.strerror}.", code="unwritable_file") from error
    typer.echo(_exported(summary), err=True)


def _upload(client: Client, file: BinaryIO, sent: Callable[[int], None], query: dict[str, str | None]) -> Answer:
    """Who refuses closes the connection while we still send, and the answer is lost. Then we ask why, with no file."""
    try:
        return client.upload_file(IMPORT, file, KIND, sent, **query)
    except Unreachable as broken:
        if broken.code == "connection_broken":
            _ask_why(client, query)
        raise


def _ask_why(client: Client, query: dict[str, str | None]) -> None:
    """Raises what the service has against the call, if it is something else than that there is no file in it."""
    try:
        client.upload_file(IMPORT, io.BytesIO(), KIND, **query)
    except Refused as refusal:
        if refusal.code != "no_rows":
            raise


@contextmanager
def _progress(file: BinaryIO, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the file is sent, and then a line while the service stores it."""
    console = terminal.console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("sending", total=_size(file))

        def sent(count: int) -> None:
            progress.advance(task, count)
            if not count:
                progress.update(task, description="sent; the service reads and stores it", total=None)

        yield sent


def _size(file: BinaryIO) -> int | None:
    """None for a pipe."""
    if not file.seekable():
        return None
    here = file.tell()
    size = file.seek(0, 2) - here
    file.seek(here)
    return size


@contextmanager
def _whole(out: Path) -> Iterator[BinaryIO]:
    """The file appears when everything is in it."""
    with whole_file(out) as partial, partial.open("wb") as file:
        yield file


def _write(client: Client, into: BinaryIO, **query: str) -> dict[str, Any]:
    """All lines, and what the service says of them. Raises `Unreachable` when it did not come to the end."""
    for line in client.lines(EXPORT, **query, summary="true"):
        if line.startswith(SUMMARY) and line.endswith(b"\n"):
            into.flush()
            return json.loads(line)["summary"]
        into.write(line)
    raise Unreachable("The export broke off before it was complete. Try it again.", code="connection_broken")


def _imported(data: dict[str, Any]) -> RenderableType:
    would = "would be " if data["dry_run"] else ""
    said = f"{data['added']} preferences {would}added, {data['known']} were known already"
    ignored = f"fields without a meaning here: {', '.join(data['ignored'])}" if data["ignored"] else None
    lines = [_recognised(data), said, *([] if ignored is None else [ignored])]
    return stack("\n".join(terminal.clean(line) for line in lines), _faults(data) if data["faults"] else None)


def _recognised(data: dict[str, Any]) -> str:
    return f"format: {data['detected']}"


def _faults(data: dict[str, Any]) -> RenderableType:
    rows = ((fault["row"], fault["field"], fault["reason"]) for fault in data["faults"])
    unnamed = data["faults_total"] - len(data["faults"])
    return stack(table(("row", "field", "reason"), rows, wrap=("reason",)), f"and {unnamed} more" if unnamed else None)


def _exported(summary: dict[str, Any]) -> str:
    thumbs = f", {summary['thumbs']} single thumbs" if summary["thumbs"] else ""
    said = f"{summary['pairs']} pairs{thumbs}"
    left_out = [f"{summary['not_stored']} pairs whose text is no longer stored"] if summary["not_stored"] else []
    left_out += [f"{count} votes {reason}" for reason, count in summary["votes_left_out"].items()]
    return f"{said}; left out: {', '.join(left_out)}" if left_out else said
