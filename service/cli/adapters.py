"""`adapters`, `promote`, `rollback` and `split`: what was published or brought from outside, and who answers."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from service.cli import rounds
from service.cli.remote import Json, connect
from service.client import in_path
from service.errors import BadRequest
from service.terminal import facts, moment, stack, table
from service.watch import swap_line, verdict_table

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, help="Adapters: list, show, add.")

# The files of an adapter; `serving/adapters.py` names them too, and costs a command more to import than it needs.
CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"

Expect = Annotated[str | None, typer.Option(help="Refuse when another adapter than this one answers by now.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the audit.")]


@app.command()
def add(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A LoRA adapter, as PEFT writes it.")
    ],
    assume_base: Annotated[
        bool, typer.Option("--assume-base", help="Without a manifest: it was trained on the model that is served.")
    ] = False,
    note: Annotated[str | None, typer.Option(help="Kept with the round.")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Watch its round until it is over.")] = False,
    as_json: Json = False,
) -> None:
    """Bring an adapter that was trained elsewhere: a round measures it, and the gate judges it like any other."""
    remote = connect(context, as_json)
    query = {"assume_base": "true" if assume_base else None, "note": note}
    with packed(directory) as tar:
        answer = remote.client.upload_file("/ops/adapters", tar, "application/x-tar", **query)
    remote.show(answer, rounds.started)
    if follow:
        rounds.watch_to_the_end(remote, answer.data["n"])


@app.command("list")
def list_adapters(context: typer.Context, as_json: Json = False) -> None:
    """All published adapters."""
    remote = connect(context, as_json)
    remote.show(
        remote.client.get("/ops/adapters"),
        lambda data: table(
            ("name", "parent", "round", "added by", "published", "files"),
            (
                (a["name"], a["parent"], a["round"], a["added_by"], moment(a["created_at"]), _files(a))
                for a in data["data"]
            ),
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
    expect: Expect = None,
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
    expect: Expect = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Let the previous adapter answer again."""
    remote = connect(context, as_json)
    body = {"to": to, "expected_current": expect, "reason": reason}
    remote.show(remote.client.post("/ops/rollback", body), _changed)


def split(
    context: typer.Context,
    candidate: Annotated[str | None, typer.Option(help="The adapter on trial; always the same users get it.")] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Of the requests, for the candidate.")] = None,
    baseline: Annotated[str | None, typer.Option(help="An adapter, or 'base', that drift is measured against.")] = None,
    baseline_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the requests, for the baseline.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Let the stable adapter answer all.")] = False,
    expect: Annotated[int | None, typer.Option(help="Refuse when the route has another generation by now.")] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Let a candidate and a baseline answer shares of the requests. What is not named stays as it is."""
    shares = {"candidate": candidate, "candidate_share": share, "baseline": baseline, "baseline_share": baseline_share}
    given: dict[str, Any] = {name: value for name, value in shares.items() if value is not None}
    if off == bool(given):
        raise typer.BadParameter("name shares, or give --off alone", param_hint="--off")
    changes = {"candidate": None, "baseline": None} if off else given
    remote = connect(context, as_json)
    body = {**changes, "expected_generation": expect, "reason": reason}
    remote.show(remote.client.put("/ops/split", body), _changed)


@contextmanager
def packed(directory: Path) -> Iterator[BinaryIO]:
    """The adapter's files as a tar. Whatever else lies beside them stays where it is.

    Raises `BadRequest` when it is no adapter. An adapter in a folder `adapter`, as training writes it, is found too.
    """
    if not (directory / CONFIG).is_file() and (directory / "adapter" / CONFIG).is_file():
        directory = directory / "adapter"
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise BadRequest(f"{directory} holds no {name}. Name the folder of a LoRA adapter, as PEFT writes it.",
                             param=name, code="file_missing")  # fmt: skip
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
            for name in (CONFIG, WEIGHTS, MANIFEST):
                if (directory / name).is_file():
                    tar.add(directory / name, arcname=name)
        file.seek(0)
        yield file


def _adapter(data: dict[str, Any]) -> RenderableType:
    return stack(
        facts({
            "name": data["name"],
            "comes from": f"outside, added by {data['added_by']}" if data["added_by"] else "a round of training here",
            "parent": data["parent"],
            "round": data["round"],
            "published": moment(data["created_at"]),
            "pairs": data["pair_digest"],
            "weights": data["weights_sha256"],
            "manifest": data["manifest_sha256"],
            "directory": data["directory"],
            "files": _files(data),
        }),
        verdict_table(data["verdict"]) if data["verdict"] else None,
    )  # fmt: skip


def _files(adapter: dict[str, Any]) -> str:
    return f"deleted {moment(adapter['deleted_at'])}" if adapter["deleted_at"] else "kept"


def _changed(data: dict[str, Any]) -> str:
    route = data["route"]
    shares = ", ".join(
        f"{place} is {route[place]} with {route[f'{place}_share']:.4g} of the requests"
        for place in ("candidate", "baseline")
        if route[place]
    )
    return (
        f"{route['stable']} answers (generation {route['generation']}), {swap_line(data)}; "
        f"previous is {route['previous'] or 'none'}" + (f"; {shares}" if shares else "")
    )
