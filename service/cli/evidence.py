"""`trace`, `round report`, `round replay`, `round pairs` and `adapters notes`: what a round leaves for people to judge by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.client import in_path
from service.errors import BadRequest
from service.measured import measured
from service.terminal import clean, facts, moment, stack, table
from service.watch import verdict_table

if TYPE_CHECKING:
    from rich.console import RenderableType

KINDS = ("vote", "pair", "round", "adapter", "completion")
SHORT = 16  # digits of a digest that a person needs
CUT = 300  # characters of an answer in a terminal

Number = Annotated[int, typer.Argument(metavar="N", help="The round's number.", min=1)]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the audit.")]


def trace(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.", metavar="KIND")],
    id: Annotated[str, typer.Argument(help="Its id: a vote's number or name, a round's number, an adapter's name.")],
    shown: Annotated[int, typer.Option(min=1, max=1000, help="Name so many of each kind, the newest.")] = 5,
    as_json: Json = False,
) -> None:
    """Follow votes, pairs, rounds, adapters and answers: what this comes from, and what it has led to."""
    if kind not in KINDS:
        raise typer.BadParameter(f"'{kind}' is none of {', '.join(KINDS)}", param_hint="KIND")
    remote = connect(context, as_json)
    remote.show(remote.client.get(f"/ops/lineage/{kind}/{in_path(id)}", shown=str(shown)), _trace)


def report(
    context: typer.Context,
    n: Number,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write it as a page into this file.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """All that is known of a round: why it ended so, what it learned, how answers changed, where it comes from."""
    remote = connect(context, as_json)
    if html is None:
        remote.show(remote.client.get(f"/ops/rounds/{n}/report"), _report)
        return
    page = remote.client.text(f"/ops/rounds/{n}/report.html")
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{html} cannot be written: {error.strerror}.", code="unwritable_file") from error
    typer.echo(f"the report is in {html}", err=True)


def replay(context: typer.Context, n: Number, as_json: Json = False) -> None:
    """Train a round again, on this machine, and compare the adapter with the one of then. Exits with 1 if they differ.

    It needs the round's files, so run it where the service keeps its state. Nothing is published.
    """
    from service.evidence.recipe import Recipe
    from service.evidence.replaying import replay as train_again

    remote = connect(context, as_json)
    recipe = Recipe.model_validate(remote.client.get(f"/ops/rounds/{n}/replay").data)
    replayed = train_again(recipe)
    if as_json:
        typer.echo(replayed.model_dump_json())
    elif replayed.reproduced:
        typer.echo(f"round {n} is reproduced in {replayed.seconds:.1f} s: the adapter's digest is {replayed.found}")
    else:
        typer.echo(f"round {n} is not reproduced: the digest was {replayed.expected} and is {replayed.found}", err=True)
        for caveat in replayed.caveats:
            typer.echo(caveat, err=True)
    if not replayed.reproduced:
        raise typer.Exit(1)


def pairs(
    context: typer.Context,
    n: Number,
    keep: Annotated[
        bool, typer.Option("--keep", help="They are learned: used up, and repeated beside new ones.")
    ] = False,
    release: Annotated[bool, typer.Option("--release", help="They count as new again.")] = False,
    retire: Annotated[bool, typer.Option("--retire", help="No round will ever learn them again.")] = False,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Say what becomes of the pairs of a round that is over, such as one that was rolled back."""
    asked = [fate for fate, said in (("learned", keep), ("released", release), ("retired", retire)) if said]
    if len(asked) != 1:
        raise typer.BadParameter("give one of --keep, --release and --retire")
    remote = connect(context, as_json)
    answer = remote.client.post(f"/ops/rounds/{n}/pairs", {"fate": asked[0], "reason": reason})
    remote.show(answer, lambda data: f"{data['pairs']} pairs of round {data['round']} are {data['fate']} now")


def notes(context: typer.Context, name: str) -> None:
    """What changed with this adapter, as Markdown: for those who live with its answers."""
    typer.echo(clean(connect(context).client.text(f"/ops/adapters/{in_path(name)}/notes")), nl=False)


# --- what is shown ------------------------------------------------------------------------------------


def _trace(data: dict[str, Any]) -> RenderableType:
    itself = table(("", "", ""), [_thing(data["kind"], thing) for thing in data["found"]])
    return stack(itself, "comes from", _steps(data["comes_from"]), "leads to", _steps(data["leads_to"]))


def _steps(steps: list[dict[str, Any]]) -> RenderableType:
    rows: list[tuple[Any, ...]] = []
    for step in steps:
        rows.append((f"{step['total']} {step['kind']}{'' if step['total'] == 1 else 's'}", "", ""))
        rows += [("", *_thing(step["kind"], thing)[1:]) for thing in step["shown"]]
        if 0 < len(step["shown"]) < step["total"] and step["kind"] != "pair":
            rows.append(("", "...", ""))
    return table(("", "", ""), rows, wrap=("",))


def _thing(kind: str, thing: dict[str, Any]) -> tuple[str, str, str]:
    """Its kind, its id, and what else is known of it."""
    id = str(thing["id"])
    known = {name: value for name, value in thing.items() if name != "id" and value not in (None, False)}
    if "created_at" in known:
        known["created_at"] = moment(known["created_at"])
    return (
        kind,
        id[:SHORT] if kind == "pair" else id,
        "  ".join(f"{n.removesuffix('_at')}={v}" for n, v in known.items()),
    )


def _report(data: dict[str, Any]) -> RenderableType:
    round = data["round"]
    return stack(
        facts({
            "round": round["n"],
            "state": round["state"],
            "reason": round["reason"],
            "adapter": round["adapter"],
            "parent": round["parent"],
            "answers now": data["stable"],
            "pairs are": round["pairs_fate"],
            "code": (round["environment"] or {}).get("commit") or (round["environment"] or {}).get("version"),
        }),
        verdict_table(round["verdict"]) if round["verdict"] else None,
        measured(round["report"], round["parity"]) if round["report"] else None,
        _samples(data),
        "comes from",
        _steps(data["lineage"]["comes_from"]),
        "leads to",
        _steps(data["lineage"]["leads_to"]),
    )  # fmt: skip


def _samples(data: dict[str, Any]) -> RenderableType | None:
    if not data["samples"]:
        return None
    rows = [(_cut(s["prompt"]), _cut(s["before"]), _cut(s["after"])) for s in data["samples"]]
    return table(("asked", "before", "after"), rows, wrap=("asked", "before", "after"))


def _cut(text: str) -> str:
    return text if len(text) <= CUT else f"{text[:CUT]}..."
