"""The live view of a round: its state, its steps and, at the end, the verdict. Reads the round's event stream.

In a terminal the view redraws itself; in a pipe each event is one line. A stream that breaks, because the Conductor
was restarted, is taken up again behind the last event seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from service.client import Client, Refused, Unreachable
from service.measured import measured
from service.terminal import STYLES, clean, facts, number, table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

FINAL = frozenset({"promoted", "rejected", "failed", "cancelled"})
RETRY_SECONDS = 0.5
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_COLUMNS = 40
BAR_COLUMNS = 40


@dataclass
class RoundView:
    """What is known of a round from the events so far."""

    n: int
    state: str = "queued"
    attempt: int = 0
    reason: str | None = None
    phase: str | None = None
    step: dict[str, Any] | None = None  # the last StepMetrics of this attempt
    losses: list[float] = field(default_factory=list)  # [steps] of this attempt
    canary: dict[str, Any] | None = None  # the step that goes on
    swap: dict[str, Any] | None = None  # how long it took until every replica answered with the new adapter
    trouble: str | None = None  # why nothing is heard at the moment

    def apply(self, event: dict[str, Any]) -> None:
        """A new attempt begins from its first step again."""
        data, self.trouble = event["data"], None
        if data.get("attempt", self.attempt) != self.attempt:
            self.attempt, self.phase, self.step, self.losses = data["attempt"], None, None, []
        if event["kind"] == "state":
            self.state, self.reason = data["state"], data["reason"]
        elif event["kind"] == "phase":
            self.phase = data["phase"]
        elif event["kind"] == "step":
            self.step = data
            self.losses.append(data["loss"])
        elif event["kind"] == "canary":
            self.canary = data
        elif event["kind"] == "swap":
            self.swap = data
        elif event["kind"] == "waits":
            self.trouble = data["why"]


def watch(client: Client, n: int, console: Console, *, as_json: bool = False) -> bool:
    """Follow the round until it is final; whether its adapter was promoted. Raises `Refused` for no such round."""
    client.get(f"/ops/rounds/{n}")  # refused or unreachable from the start is an error, only later it is a pause
    view = RoundView(n)
    try:
        if as_json:
            for event in follow(client, n, lambda reason: typer.echo(reason, err=True)):
                view.apply(event)
                typer.echo(json.dumps(event, separators=(",", ":"), ensure_ascii=False))
        else:
            _show(client, view, console)
    except KeyboardInterrupt:
        typer.echo(f"The round goes on; see it again with `heliotrope round watch {n}`.", err=True)
        raise
    if not as_json:
        _conclude(client.get(f"/ops/rounds/{n}").data, console)
    return view.state == "promoted"


def follow(
    client: Client, n: int, on_trouble: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Every event of the round once and in order, up to its final state, over as many connections as it takes."""
    after, final = 0, False
    while not final:
        try:
            for event in client.events(n, after):
                after = event["seq"]
                final |= event["kind"] == "state" and event["data"]["state"] in FINAL
                yield event
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.status_code < 500:
                raise
            on_trouble(error.message)
        if not final:
            pause(RETRY_SECONDS)


def _show(client: Client, view: RoundView, console: Console) -> None:
    """Events as they come: into the redrawn view of a terminal, or as lines."""
    if not console.is_terminal:
        for event in follow(client, view.n, lambda reason: _say(console, f"round {view.n}: {reason}")):
            view.apply(event)
            _say(console, event_line(view, event))
        return
    from rich.live import Live

    def trouble(reason: str) -> None:
        view.trouble = reason

    with Live(console=console, get_renderable=lambda: render(view), refresh_per_second=8):
        for event in follow(client, view.n, trouble):
            view.apply(event)


def _conclude(round: dict[str, Any], console: Console) -> None:
    """What was measured, the verdict, and in one line what became of the round."""
    if round["report"]:
        console.print()
        console.print(measured(round["report"], round["parity"]))
    if round["verdict"]:
        console.print()
        console.print(verdict_table(round["verdict"]))
        console.print()
    outcome = f"round {round['n']} was {round['state']}" if round["state"] != "failed" else f"round {round['n']} failed"
    reason = f" ({clean(round['reason'])})" if round["reason"] else ""
    after = f"{round['adapter']} answers now" if round["state"] == "promoted" else "the adapter that answered stays"
    _say(console, f"{outcome}{reason}: {after}", STYLES.get(round["state"]))


def _say(console: Console, line: str, style: str | None = None) -> None:
    """Whatever the console makes of other texts, nothing in this one is markup."""
    console.print(line, style=style, markup=False, highlight=False)


# --- what is drawn ------------------------------------------------------------------------------------


def render(view: RoundView) -> RenderableType:
    """The view as it is redrawn: a handful of lines."""
    attempt = f", attempt {view.attempt}" if view.attempt > 1 else ""
    shown: dict[str, Any] = {
        f"round {view.n}": f"{view.state}{attempt}",
        "phase": view.phase,
        **(_step_facts(view.step, view.losses) if view.step else {}),
        "waits for": view.reason if view.state == "awaiting_approval" else None,
        "canary": canary_line(view.canary) if view.canary and view.state == "canary" else None,
        "swap": swap_line(view.swap) if view.swap else None,
        "waiting": view.trouble,
    }
    return facts({name: value for name, value in shown.items() if value is not None})


def _step_facts(step: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar

    done, steps = step["step"], step["steps"]
    left_seconds = step["seconds"] / done * (steps - done)
    left = f", about {left_seconds:.0f} s left" if done < steps else ""
    bar = ProgressBar(total=steps, completed=done, width=BAR_COLUMNS)
    return {
        "steps": Columns([bar, f"{done} of {steps}{left}"]),
        "loss": f"{step['loss']:.4f}  {sparkline(losses)}",
        "margin": number(step["rewards/margins"], ".4f"),
        "accuracy": number(step["rewards/accuracies"], ".0%"),
    }


def event_line(view: RoundView, event: dict[str, Any]) -> str:
    """One event as one line of text."""
    data, prefix = event["data"], f"round {view.n}: "
    match event["kind"]:
        case "state":
            return f"{prefix}{data['state']}" + (f" ({clean(data['reason'])})" if data["reason"] else "")
        case "phase":
            return f"{prefix}phase {data['phase']}"
        case "step":
            return (
                f"{prefix}step {data['step']} of {data['steps']}, loss {data['loss']:.4f}, "
                f"margin {number(data['rewards/margins'], '.4f')}, "
                f"accuracy {number(data['rewards/accuracies'], '.0%')}"
            )
        case "attempt":
            return f"{prefix}attempt {data['attempt']}"
        case "canary":
            return f"{prefix}canary {canary_line(data)}"
        case "watch":
            return f"{prefix}{data['adapter']} was watched: {data['ended']} ({clean(data['why'])})"
        case "swap":
            return f"{prefix}swap to {data['to']}, {swap_line(data)}"
        case "waits":
            return f"{prefix}waits: {clean(data['why'])}"
        case kind:
            return f"{prefix}{kind}"


def canary_line(data: dict[str, Any]) -> str:
    """Whom a candidate answers since this step began."""
    return f"step {data['step']} of {data['steps']}: {data['share']:.0%} of the users"


def swap_line(data: dict[str, Any]) -> str:
    """How long a change of the route took; answers went on all the while."""
    return f"prepared in {data['prepare_seconds']:.2f} s, swapped in {data['flip_seconds'] * 1000:.0f} ms"


def sparkline(values: list[float], columns: int = SPARKLINE_COLUMNS) -> str:
    """The last values as bars between the least and the greatest of them; equal values lie at the bottom."""
    shown = values[-columns:]
    low, span = min(shown), max(shown) - min(shown)
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] if span else SPARKS[0] for value in shown)


def verdict_table(verdict: dict[str, Any]) -> Table:
    """The gate's checks: what each said, its number, the bound it is held to, and why."""
    return table(
        ("check", "outcome", "value", "bound", "why"),
        (
            (c["name"], _outcome(c), _maybe(c["value"]), _maybe(c["bound"]), c["why"])
            for c in verdict["checks"]
        ),
        wrap=("why",),
    )  # fmt: skip


def _outcome(check: dict[str, Any]) -> str:
    """Whether an abstention stopped the candidate is the first thing to ask of it."""
    return "abstain (not needed)" if check["outcome"] == "abstain" and not check["needed"] else check["outcome"]


def _maybe(value: float | None) -> str | None:
    return None if value is None else number(value)
