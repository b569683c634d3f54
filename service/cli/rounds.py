"""`round`: start a round of learning, look at it, watch it, agree to it, stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import dry_run as dry_run_view
from service.cli.learning import Reason, canary_table, watch_table
from service.cli.preferences import funnel
from service.cli.remote import Json, Remote, connect
from service.measured import measured
from service.terminal import console, facts, moment, stack, table
from service.watch import verdict_table, watch

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, help="Rounds of learning: start, list, show, watch, approve, reject, cancel.")

Number = Annotated[int, typer.Argument(metavar="N", help="The round's number.", min=1)]


@app.command()
def start(
    context: typer.Context,
    objective: Annotated[
        str | None, typer.Option(help="A sum of losses, such as dpo, dpo+0.2*nll, dpo+kto, rpo.", metavar="LOSSES")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="How closely the policy stays to the deployed one.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of votes taken to be wrong.")] = None,
    ld_alpha: Annotated[float | None, typer.Option(help="Weight of the longer answer's tail (LD-DPO).")] = None,
    desirable_weight: Annotated[float | None, typer.Option(help="KTO's weight of thumbs up.")] = None,
    undesirable_weight: Annotated[float | None, typer.Option(help="KTO's weight of thumbs down.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each pair is seen.")] = None,
    replay: Annotated[float | None, typer.Option(help="Share of pairs that earlier rounds learned, 0 to 0.5.")] = None,
    min_pairs: Annotated[int | None, typer.Option(help="With fewer new pairs the round does nothing.")] = None,
    note: Annotated[str | None, typer.Option(help="Kept with the round.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the round would learn from.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")] = False,
    as_json: Json = False,
) -> None:
    """Start a round. What is not given comes from the service's settings."""
    given = {
        "objective": objective, "beta": beta, "label_smoothing": label_smoothing, "ld_alpha": ld_alpha,
        "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight,
        "learning_rate": learning_rate, "epochs": epochs, "replay": replay, "min_pairs": min_pairs,
        "note": note, "dry_run": dry_run or None,
    }  # fmt: skip
    remote = connect(context, as_json)
    answer = remote.client.post("/ops/rounds", {name: value for name, value in given.items() if value is not None})
    remote.show(answer, dry_run_view.shown if dry_run else started)
    if follow and not dry_run:
        watch_to_the_end(remote, answer.data["n"])


@app.command("list")
def list_rounds(context: typer.Context, as_json: Json = False) -> None:
    """All rounds, newest first."""
    remote = connect(context, as_json)
    remote.show(remote.client.get("/ops/rounds"), _rounds)


@app.command()
def show(context: typer.Context, n: Number, as_json: Json = False) -> None:
    """One round: its settings, what it learned from, what was measured, and the verdict."""
    remote = connect(context, as_json)
    remote.show(remote.client.get(f"/ops/rounds/{n}"), _round)


@app.command("watch")
def watch_round(context: typer.Context, n: Number, as_json: Json = False) -> None:
    """Follow a round until it is over. Exits with 1 unless its adapter was promoted."""
    watch_to_the_end(connect(context, as_json), n)


@app.command()
def cancel(context: typer.Context, n: Number, as_json: Json = False) -> None:
    """Stop a round that is not over; the adapter that answers stays."""
    remote = connect(context, as_json)
    remote.show(remote.client.post(f"/ops/rounds/{n}/cancel", {}), lambda data: f"round {n} is {data['state']}")


@app.command()
def approve(context: typer.Context, n: Number, reason: Reason = None, as_json: Json = False) -> None:
    """Agree to what a round waits for: that its candidate answers people, or the next step of its canary."""
    remote = connect(context, as_json)
    answer = remote.client.post(f"/ops/rounds/{n}/approve", {} if reason is None else {"reason": reason})
    remote.show(answer, lambda data: f"round {n} is {data['state']}, approved by {data['approved_by']}")


@app.command()
def reject(context: typer.Context, n: Number, reason: Reason = None, as_json: Json = False) -> None:
    """Turn down a candidate that the gate let pass; the adapter that answers stays."""
    remote = connect(context, as_json)
    answer = remote.client.post(f"/ops/rounds/{n}/reject", {} if reason is None else {"reason": reason})
    remote.show(answer, lambda data: f"round {n} is {data['state']}")


def watch_to_the_end(remote: Remote, n: int) -> None:
    """Ends the command with 1 unless the round's adapter was promoted."""
    if not watch(remote.client, n, console(), as_json=remote.as_json):
        raise typer.Exit(1)


def started(data: dict[str, Any]) -> str:
    n = data["n"]
    return f"round {n} is {data['state']}; follow it with `heliotrope round watch {n}`"


def _candidate(data: dict[str, Any]) -> str:
    candidate = data["candidate"]
    vouched = ", its base vouched for" if candidate["assumed_base"] else ""
    return f"{candidate['name'] or 'an adapter'} from outside, added by {data['requested_by']}{vouched}"


def _rounds(data: dict[str, Any]) -> RenderableType:
    return table(
        ("n", "state", "pairs", "adapter", "asked for", "reason"),
        ((r["n"], r["state"], r["pairs"], r["adapter"], moment(r["created_at"]), r["reason"]) for r in data["data"]),
        wrap=("reason",),
    )


def _round(data: dict[str, Any]) -> RenderableType:
    return stack(
        facts({
            "round": data["n"],
            "state": data["state"],
            "reason": data["reason"],
            "note": data["note"],
            "asked for": f"{moment(data['created_at'])} by {data['requested_by']}",
            "changed": moment(data["updated_at"]),
            "settings": "  ".join(f"{name}={value}" for name, value in data["settings"].items()),
            "candidate": _candidate(data) if data["candidate"] else None,
            "parent": data["parent"],
            "attempt": data["attempt"] or None,
            "pairs": data["pairs"],
            "pair digest": data["pair_digest"],
            "adapter": data["adapter"],
            "approved by": data["approved_by"],
        }),
        funnel(data["funnel"]) if data["funnel"] else None,
        measured(data["report"], data["parity"]) if data["report"] else None,
        verdict_table(data["verdict"]) if data["verdict"] else None,
        canary_table(data["canary"]) if data["canary"] else None,
        watch_table(data["watch"]) if data["watch"] else None,
    )  # fmt: skip
