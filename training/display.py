"""What a person sees of training alone: a bar or plain lines while it runs, and what came of it. Knows reports only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from training.contracts import Finding, Progress, RoundReport, StepMetrics

PIPE_COLUMNS = 1000  # in a pipe a row is one line, however long
LINES_OF_STEPS = 100  # at most about as many where nothing can be redrawn
EVALUATION = ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies")  # the first to look at, of TRL's names

_PHASES = {
    "load": "loading the model and the preferences",
    "reference": "scoring with the reference",
    "train": "training",
    "evaluate": "evaluating",
    "write": "writing",
}
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")


def console(*, stderr: bool = False) -> Console:
    """Prints what it is given: nothing in a text is markup, and nothing is coloured by guess."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPE_COLUMNS
    return made


def one_line(text: str) -> str:
    """Without line breaks and control characters: what stood in a file must not steer the terminal."""
    return " ".join(text.translate(_CONTROL).split())


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """To be told of what happens in a round, and to show it: redrawn in a terminal, else line by line."""
    if not console.is_terminal:
        yield lambda progress: _print(console, progress)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None, numbers="")

        def show(progress: Progress) -> None:
            if progress.step is not None:
                step = progress.step
                bars.update(task, total=step.steps, completed=step.step, numbers=_numbers(step))
            elif progress.phase is not None:
                bars.update(task, description=_PHASES.get(progress.phase, progress.phase))

        yield show


def _print(console: Console, progress: Progress) -> None:
    step = progress.step
    if step is None:
        console.print(_PHASES.get(progress.phase or "", progress.phase or ""))
    elif step.step == step.steps or step.step % max(1, step.steps // LINES_OF_STEPS) == 0:
        console.print(f"step {_numbers(step)}")


def _numbers(step: StepMetrics) -> str:
    left_seconds = step.seconds / step.step * (step.steps - step.step)
    left = f", {_duration(left_seconds)} left" if step.step < step.steps else ""
    return (
        f"{step.step} of {step.steps}, loss {step.loss:.4f}, margin {_number(step.rewards_margins, '.4f')}, "
        f"accuracy {_number(step.rewards_accuracies, '.0%')}{left}"
    )


def outcome(report: RoundReport, metrics: Path) -> RenderableType:
    """Where everything is, what was measured, what the checks of the data found, and what to do next."""
    values = {
        "adapter": report.adapter_directory,
        "name": report.adapter_name,
        "trained on": _counts(report),
        "how": _how(report),
        "loss": f"{report.step0_loss:.4f} at first, {report.steps[-1].loss:.4f} at last" if report.steps else None,
        "held out": _held_out(report),
        "evaluation": _evaluation(report),
        "drift": _drift(report),
        "curves": report.curves,
        "metrics": str(metrics) if any(metrics.glob("*")) else None,
        "seconds": "  ".join(f"{phase}={seconds:.1f}" for phase, seconds in report.seconds.items()),
        "next": f"heliotrope adapters add {report.adapter_directory}",
    }
    lines = [Text.assemble((f"{name:<12}", "dim"), value) for name, value in values.items() if value is not None]
    return Group(*(part for found in report.findings for part in (_finding(found), "")), *lines)


def _finding(found: Finding) -> Text:
    rows = f" (row {', '.join(map(str, found.rows))}{', ...' if found.count > len(found.rows) else ''})"
    rows = rows if found.rows else ""
    return Text(f"{found.count} {found.action.replace('_', ' ')}, {found.check}{rows}: {one_line(found.why)}", "yellow")


def _counts(report: RoundReport) -> str:
    said = f"{report.pairs_trained} pairs, {report.pairs_held_out} held out"
    if report.thumbs_trained or report.thumbs_held_out:
        said += f"; {report.thumbs_trained} thumbs, {report.thumbs_held_out} held out"
    left_out = ", ".join(f"{count} {reason}" for reason, count in report.pairs_skipped.items())
    return said + (f"; left out: {left_out}" if left_out else "")


def _how(report: RoundReport) -> str:
    why = f" ({one_line(report.layout_reason)})" if report.layout_reason else ""
    off = f" (within {_number(report.dtype_error)} nats a token)" if report.dtype_error is not None else ""
    checkpointing = ", gradient checkpointing" if report.gradient_checkpointing else ""
    resumed = f", resumed from step {report.resumed_from}" if report.resumed_from is not None else ""
    return f"{report.objective}, {report.layout} prompts{why}, {report.dtype}{off}{checkpointing}{resumed}"


def _held_out(report: RoundReport) -> str | None:
    if report.current is None or report.candidate is None:
        return None
    before, after = report.current, report.candidate
    return (
        f"{after.accuracy:.1%} of {after.pairs} pairs right, {before.accuracy:.1%} before; "
        f"margin {_number(after.mean_margin)} nats, {_number(before.mean_margin)} before"
    )


def _evaluation(report: RoundReport) -> str | None:
    known = report.evaluation
    return "  ".join(f"{name}={_number(known[name])}" for name in EVALUATION if name in known) or None


def _drift(report: RoundReport) -> str | None:
    if report.drift is None:
        return None
    return (
        f"KL {_number(report.drift.kl_previous)} to where it began, {_number(report.drift.kl_base)} to the base, "
        f"nats a token over {report.drift.tokens} tokens"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole // 60 % 60} min" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


def _number(value: float | None, form: str = ".4g") -> str:
    """A dash for what there is no number of, such as the accuracy of single thumbs."""
    return "-" if value is None else format(value, form)
