"""`python -m training PAIRS --model NAME --out DIR`: training alone, on a file, without the service and without Ray.

The order of things; what its options mean is in `options.py`. What goes wrong ends in one line: options that make no sense with status 2, all
else with 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from training import display, options, standalone
from training.contracts import Fingerprints, LoraSpec, RoundReport, RoundSpec
from training.errors import TrainingError
from training.formats import SHAPES, SHAPES_LISTED
from training.intake import Intake
from training.reading import Fault

FAULTS_NAMED = 20
INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C has ended

# Fields of a `RoundSpec` that go by a shorter name here.
OPTIONS = {"adapter_ordinal": "ordinal", "seconds_between_checkpoints": "checkpoint_seconds"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_ROUND = RoundSpec.model_construct()  # its defaults


@app.command(epilog=SHAPES_LISTED)
def main(
    context: typer.Context,
    pairs: options.Pairs,
    model: options.Model,
    out: options.Out,
    parent: options.Parent = None,
    format: options.FormatName = None,
    held_out: options.HeldOut = 0.1,
    skip_bad: options.SkipBad = False,
    objective: options.Objective = _ROUND.objective,
    beta: options.Beta = _ROUND.beta,
    label_smoothing: options.LabelSmoothing = _ROUND.label_smoothing,
    ld_alpha: options.LdAlpha = _ROUND.ld_alpha,
    desirable_weight: options.DesirableWeight = _ROUND.desirable_weight,
    undesirable_weight: options.UndesirableWeight = _ROUND.undesirable_weight,
    learning_rate: options.LearningRate = _ROUND.learning_rate,
    epochs: options.Epochs = _ROUND.epochs,
    pairs_per_step: options.PairsPerStep = _ROUND.pairs_per_step,
    tokens_per_micro_batch: options.TokensPerMicroBatch = _ROUND.tokens_per_micro_batch,
    warmup_ratio: options.WarmupRatio = _ROUND.warmup_ratio,
    max_gradient_norm: options.MaxGradientNorm = _ROUND.max_gradient_norm,
    seed: options.Seed = _ROUND.seed,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    dtype: options.DType = "auto",
    gradient_checkpointing: options.GradientCheckpointing = _ROUND.gradient_checkpointing,
    trackers: options.Trackers = "tensorboard",
    checkpoint_seconds: options.CheckpointSeconds = _ROUND.seconds_between_checkpoints,
    threads: options.Threads = None,
    ordinal: options.Ordinal = 1,
    round: options.Round = 1,
    as_json: options.AsJson = False,
) -> None:
    """Train a LoRA adapter from preferences. The same command, after it was stopped, goes on where it was."""
    out = out.absolute()
    spec = _draft(context.params, out)
    said = display.console(stderr=True)
    try:
        standalone.require_free(out)
        directory = standalone.model_directory(model)
        spec = spec.model_copy(update=_adapter(parent, rank, alpha))
        intake = Intake(held_out, skip_bad, _named(said.print), lambda found: said.print(f"format: {found}"))
        with standalone.completed(spec, directory, pairs, format, intake) as whole:
            _say_what_was_read(said.print, intake)
            with display.shown(said) as report:
                learned = standalone.train(whole, report, threads)
    except KeyboardInterrupt:
        said.print("stopped: the same command goes on from the last checkpoint, or begins again where there is none")
        raise typer.Exit(INTERRUPTED) from None
    except (TrainingError, OSError) as error:
        said.print(f"error: {display.one_line(str(error))}", style="red")
        raise typer.Exit(1) from None
    _show(learned, intake, out, as_json=as_json)


def _draft(given: dict[str, Any], out: Path) -> RoundSpec:
    """The spec without model and preferences, so that an option that makes no sense is refused before they are read."""
    named = {
        field: given[OPTIONS.get(field, field)]
        for field in RoundSpec.model_fields
        if OPTIONS.get(field, field) in given
    }
    named["trackers"] = tuple(name.strip() for name in given["trackers"].split(",") if name.strip())
    places = {
        "snapshot": str(out / standalone.SNAPSHOT),
        "checkpoints": str(out / standalone.CHECKPOINTS),
        "out": str(out),
        "storage": str(out),
    }
    unread = {"model": "", "pair_digest": "", "fingerprints": Fingerprints(base_model="", tokenizer=""), "parent": None}
    try:
        return RoundSpec.model_validate({"attempt": 1, **named, **places, **unread})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else None
        option = None if name is None else f"--{OPTIONS.get(name, name).replace('_', '-')}"
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=option) from None


def _adapter(parent: Path | None, rank: int | None, alpha: int | None) -> dict[str, Any]:
    """The fields of a spec about the adapter: a parent's shape is kept unless another is asked for, and then refused."""
    continued, shape = (None, LoraSpec()) if parent is None else standalone.parent_of(parent)
    return {"parent": continued, "lora": LoraSpec(rank=rank or shape.rank, alpha=alpha or shape.alpha)}


def _named(say: Callable[[str], None]) -> Callable[[Fault], None]:
    """Says the first faults in full."""
    seen = 0

    def on_fault(fault: Fault) -> None:
        nonlocal seen
        seen += 1
        if seen <= FAULTS_NAMED:
            field = f"{fault.field}: " if fault.field else ""
            say(display.one_line(f"row {fault.row}: {field}{fault.reason}"))
        elif seen == FAULTS_NAMED + 1:
            say("... and more")

    return on_fault


def _say_what_was_read(say: Callable[[str], None], intake: Intake) -> None:
    say("read: " + ", ".join(f"{count} {name}, {SHAPES[name]}" for name, count in intake.formats.items()))
    say(f"{intake.n_train} rows to train on, {intake.n_held_out} held out" + _bad(intake.faults))
    if intake.ignored:
        say(f"fields without a meaning here: {display.one_line(', '.join(sorted(intake.ignored)))}")


def _bad(count: int) -> str:
    return f", {count} bad ones left out" if count else ""


def _show(report: RoundReport, intake: Intake, out: Path, *, as_json: bool) -> None:
    """The report on standard output, its findings with the rows' numbers in the file."""
    findings = tuple(
        found.model_copy(update={"rows": tuple(intake.number_in_file(row) for row in found.rows)})
        for found in report.findings
    )
    report = report.model_copy(update={"findings": findings})
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        display.console().print(display.outcome(report, out / "metrics"), soft_wrap=True)  # paths stay whole


if __name__ == "__main__":
    app(prog_name="python -m training")
