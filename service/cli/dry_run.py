"""What a round would do, in a terminal: what it lacks, what it would take, and what the data looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.cli.data_report import findings, slices
from service.cli.preferences import funnel
from service.terminal import facts, number, stack, table

if TYPE_CHECKING:
    from rich.console import RenderableType

GIB = 1 << 30


def shown(data: dict[str, Any]) -> RenderableType:
    """The answer to a dry run; what is wrong stands first."""
    return stack(
        findings(data["report"]), slices(data["report"]), funnel(data["funnel"]), _canary(data["canary"]), _plan(data)
    )


def _plan(data: dict[str, Any]) -> RenderableType:
    verb = "would learn from these" if data["enough"] else f"would do nothing: {data['missing']}"
    return facts({
        "a round": verb,
        "objective": f"{data['objective']}, {data['settings']['epochs']} epochs",
        "trained on": f"{data['training']} pairs{_beside(data)}; {data['held_out']} are held out",
        "people": f"{data['people']}, of {data['apps']} apps",
        "time": _time(data["estimate"]),
        "memory": _memory(data["estimate"]),
    })  # fmt: skip


def _beside(data: dict[str, Any]) -> str:
    thumbs = f", {data['thumbs']} single thumbs" if data["thumbs"] else ""
    return thumbs + (f", at most {data['replayed']} of earlier rounds" if data["replayed"] else "")


def _time(estimate: dict[str, Any]) -> str:
    said = f"about {duration(estimate['seconds'])}, of which training {duration(estimate['training_seconds'])}"
    if estimate["basis"] == "guess":
        return f"{said}: a guess, for no round has been trained yet"
    if estimate["seconds_low"] is None:
        return f"{said}, by the one round before"
    between = f"{duration(estimate['seconds_low'])} to {duration(estimate['seconds_high'])}"
    return f"{said} ({between}, by the last {estimate['rounds']} rounds)"


def _memory(estimate: dict[str, Any]) -> str | None:
    if estimate["memory_bytes"] is None:
        return None
    said = f"{estimate['memory_bytes'] / GIB:.1f} GiB in the worker"
    return f"about {said}: a guess" if estimate["basis"] == "guess" else f"at most {said} in the last rounds"


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _canary(sights: dict[str, Any] | None) -> RenderableType | None:
    """What harm a canary would see with the traffic of the last days, and when."""
    if sights is None:
        return None
    rows = (
        (s["harm"], f"{s['share']:.0%}", f"{number(s['times'], '.3g')} times", s["users"],
         "-" if s["hours"] is None else duration(3600 * s["hours"]))
        for s in sights["sights"]
    )  # fmt: skip
    return table(("a canary sees", "with", "as often", "by its users", "after"), rows)
