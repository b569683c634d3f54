"""`pause`, `resume`, `triggers` and `canary`: whether rounds start by themselves, and what a canary could see and sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.remote import Json, connect
from service.terminal import facts, moment, number, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

Reason = Annotated[str | None, typer.Option(help="Kept in the audit.")]

canary = typer.Typer(no_args_is_help=True, help="Canaries: what harm they can see.")


def pause(context: typer.Context, reason: Reason = None, as_json: Json = False) -> None:
    """Let no round start by itself. Answers go on, and so does a round that runs."""
    remote = connect(context, as_json)
    answer = remote.client.post("/ops/pause", {} if reason is None else {"reason": reason})
    remote.show(answer, lambda data: f"paused by {data['who']} at {moment(data['at'])}; `heliotrope resume` ends it")


def resume(context: typer.Context, reason: Reason = None, as_json: Json = False) -> None:
    """Let rounds start by themselves again."""
    remote = connect(context, as_json)
    answer = remote.client.post("/ops/resume", {} if reason is None else {"reason": reason})
    remote.show(answer, lambda data: "resumed" if data["was_paused"] else "there was no pause")


def triggers(context: typer.Context, as_json: Json = False) -> None:
    """What starts rounds, when, and what they wait for."""
    remote = connect(context, as_json)
    remote.show(remote.client.get("/ops/triggers"), _triggers)


@canary.command()
def power(context: typer.Context, as_json: Json = False) -> None:
    """How much harm a canary sees with the traffic of the last week, and when."""
    remote = connect(context, as_json)
    remote.show(remote.client.get("/ops/canary/power"), sights)


def _triggers(data: dict[str, Any]) -> RenderableType:
    pause = data["pause"]
    set_to = "  ".join(f"{name}={value}" for name, value in data["triggers"].items())
    return facts({
        "triggers": set_to or "none: rounds start by hand",
        "paused": f"by {pause['who']} at {moment(pause['at'])}" if pause else None,
        "new pairs": data["new_pairs"],
        "missing": data["missing"],
        "next by the clock": moment(data["next_cron"]) if data["next_cron"] else None,
        "waits for": data["waits_for"],
    })  # fmt: skip


def sights(data: dict[str, Any]) -> RenderableType:
    """The table of `GET /ops/canary/power`."""
    traffic = data["traffic"]
    steps = ", ".join(f"{share:.0%}" for share in data["steps"]) or "none (canary.steps); the table is for 50%"
    return stack(
        facts({
            "adapter": data["adapter"],
            "asked": f"by {traffic['users']} users in {traffic['hours']:g} hours",
            "steps": steps,
            "false alarms": f"at most {data['alpha']:.0%} of harmless candidates, however often one looks",
        }),
        table(
            ("harm", "now", "share", "times as often", "users of the candidate", "seen after"),
            (
                (
                    s["harm"], f"{s['rate']:.2%}", f"{s['share']:.0%}", number(s["times"], ".2f"), s["users"],
                    _hours(s["hours"]),
                )
                for s in data["sights"]
            ),
        ),
        f"Harm of that size is seen within that time in {data['power']:.0%} of canaries.",
    )  # fmt: skip


def _hours(hours: float | None) -> str | None:
    if hours is None:
        return None
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def canary_table(state: dict[str, Any]) -> RenderableType:
    """Where a round's canary is: its step, and what it has seen of each kind of harm."""
    step = state["steps"][-1] if state["steps"] else None
    users = state["users"]
    return stack(
        facts({
            "canary": f"{step['share']:.0%} of the users since {moment(step['began'])}" if step else "about to begin",
            "users": f"{users.get('candidate', 0)} of the candidate, {users.get('stable', 0)} of {state['stable']}",
            "waits for": state["waits_for"],
        }),
        table(
            ("harm", "candidate", "before", "e-value", "stops at"),
            ((s["harm"], s["candidate"], s["stable"], number(s["e_value"], ".3g"), s["bound"]) for s in state["seen"]),
        ),
    )  # fmt: skip


def watch_table(state: dict[str, Any]) -> RenderableType:
    """What was seen since a promoted adapter answers everybody."""
    until = f"until {moment(state['until'])}" if state["open"] else f"{state['ended']} ({state['why']})"
    return stack(
        facts({"watched": until, "users an hour": state["users"]}),
        table(
            ("harm", "now", "before", "e-value", "goes back at"),
            (
                (s["harm"], f"{s['rate']:.2%}", f"{s['before']:.2%}", number(s["e_value"], ".3g"), s["bound"])
                for s in state["seen"]
            ),
        ) if state["seen"] else None,
    )  # fmt: skip
