"""`python -m training PAIRS --model NAME --out DIR`: training alone, on a file, without the service and without Ray.

Its options, and the order of things. What goes wrong ends in one line: options that make no sense with status 2, all
else with 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from training import display, standalone
from training.contracts import Fingerprints, LoraSpec, RoundReport, RoundSpec
from training.errors import TrainingError
from training.formats import SHAPES, Format
from training.intake import Fault, Intake

FAULTS_NAMED = 20
INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C has ended

# Fields of a `RoundSpec` that go by a shorter name here.
OPTIONS = {"adapter_ordinal": "ordinal", "seconds_between_checkpoints": "checkpoint_seconds"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _default(field: str) -> Any:
    return RoundSpec.model_fields[field].default


@app.command(epilog=f"Formats: {'; '.join(f'{name} {shape}' for name, shape in SHAPES.items())}.")
def main(
    pairs: Annotated[
        Path, typer.Argument(metavar="PAIRS", exists=True, help="JSON lines or Parquet in a format of TRL's.")
    ],
    model: Annotated[str, typer.Option(help="The base model: a directory, or a name on Hugging Face.")],
    out: Annotated[Path, typer.Option(help="The directory that receives adapter/, curves.svg and metrics/.")],
    parent: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="An adapter of ours to continue; the reference.")
    ] = None,
    format: Annotated[Format | None, typer.Option(help="Refuse rows of any other format.")] = None,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the prompts to evaluate on and not to train on; 0: none.")
    ] = 0.1,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows out instead of refusing the file.")
    ] = False,
    objective: Annotated[
        str, typer.Option(metavar="LOSSES", help="A sum of losses, such as dpo, dpo+0.2*nll, dpo+kto, rpo.")
    ] = _default("objective"),
    beta: Annotated[float, typer.Option(help="How closely the policy stays to its reference.")] = _default("beta"),
    label_smoothing: Annotated[
        float, typer.Option(help="Share of preferences taken to be wrong: for cdpo and robust.")
    ] = _default("label_smoothing"),
    ld_alpha: Annotated[float, typer.Option(help="Weight of the longer answer's tail (LD-DPO).")] = _default(
        "ld_alpha"
    ),
    desirable_weight: Annotated[float, typer.Option(help="KTO's weight of thumbs up.")] = _default("desirable_weight"),
    undesirable_weight: Annotated[float, typer.Option(help="KTO's weight of thumbs down.")] = _default(
        "undesirable_weight"
    ),
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = _default("learning_rate"),
    epochs: Annotated[int, typer.Option(help="How often each row is seen.")] = _default("epochs"),
    pairs_per_step: Annotated[int, typer.Option(help="Rows an optimiser step learns from.")] = _default(
        "pairs_per_step"
    ),
    tokens_per_micro_batch: Annotated[
        int, typer.Option(help="Tokens in one forward pass; changes speed and memory, not what is learned.")
    ] = _default("tokens_per_micro_batch"),
    warmup_ratio: Annotated[float, typer.Option(help="Share of the steps that warm up.")] = _default("warmup_ratio"),
    max_gradient_norm: Annotated[float, typer.Option(help="Longer gradients are clipped to it.")] = _default(
        "max_gradient_norm"
    ),
    seed: Annotated[int, typer.Option(help="Of the fresh adapter and of the order of rows.")] = _default("seed"),
    rank: Annotated[
        int | None, typer.Option(min=1, max=64, help="Of the adapter.  [default: 8, or the parent's]")
    ] = None,
    alpha: Annotated[
        int | None, typer.Option(min=1, help="The update is scaled by alpha / rank.  [default: 16, or the parent's]")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the frozen base; auto: what is faster.")
    ] = "auto",
    gradient_checkpointing: Annotated[
        Literal["auto", "on", "off"], typer.Option(help="Compute activations twice; auto: where memory asks for it.")
    ] = _default("gradient_checkpointing"),
    trackers: Annotated[
        str, typer.Option(help="Of tensorboard, mlflow, wandb, with commas between; '' for none.")
    ] = "tensorboard",
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = _default(
        "seconds_between_checkpoints"
    ),
    threads: Annotated[int | None, typer.Option(min=1, help="On a CPU.  [default: all cores]")] = None,
    ordinal: Annotated[int, typer.Option(help="The n of the adapter's name, policy-<n>-<digest>.")] = 1,
    round: Annotated[int, typer.Option(help="The number of the round, kept in the manifest.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Train a LoRA adapter from preferences. The same command, after it was stopped, goes on where it was."""
    settings = {
        "objective": objective, "beta": beta, "label_smoothing": label_smoothing, "ld_alpha": ld_alpha,
        "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight,
        "learning_rate": learning_rate, "epochs": epochs, "pairs_per_step": pairs_per_step,
        "tokens_per_micro_batch": tokens_per_micro_batch, "warmup_ratio": warmup_ratio,
        "max_gradient_norm": max_gradient_norm, "seed": seed, "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
        "trackers": tuple(name.strip() for name in trackers.split(",") if name.strip()),
        "seconds_between_checkpoints": checkpoint_seconds, "adapter_ordinal": ordinal, "round": round,
    }  # fmt: skip
    out = out.absolute()
    spec = _draft(settings, out)
    said = display.console(stderr=True)
    try:
        standalone.require_free(out)
        directory = standalone.model_directory(model)
        spec = spec.model_copy(update=_adapter(parent, rank, alpha))
        intake = Intake(held_out, skip_bad, _named(said.print))
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


def _draft(settings: dict[str, Any], out: Path) -> RoundSpec:
    """The spec without model and preferences, so that an option that makes no sense is refused before they are read."""
    places = {
        "snapshot": str(out / standalone.SNAPSHOT),
        "checkpoints": str(out / standalone.CHECKPOINTS),
        "out": str(out),
        "storage": str(out),
    }
    unread = {"model": "", "pair_digest": "", "fingerprints": Fingerprints(base_model="", tokenizer=""), "parent": None}
    try:
        return RoundSpec.model_validate({"attempt": 1, **settings, **places, **unread})
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
    formats = ", ".join(f"{count} {name}, {SHAPES[name]}" for name, count in intake.formats.items())
    say(f"recognised: {formats}")
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
