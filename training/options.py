"""The options of `python -m training`: what each takes and means. What they default to is said where they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.formats import Format

# --- what is read and written -------------------------------------------------------------------------

Pairs = Annotated[
    Path,
    typer.Argument(metavar="PAIRS", exists=True, help="JSON lines (.gz too) or Parquet, in one of the formats below."),
]
Model = Annotated[str, typer.Option(help="The base model: a directory, or a name on Hugging Face.")]
Out = Annotated[Path, typer.Option(help="The directory that receives adapter/, curves.svg and metrics/.")]
Parent = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="An adapter of ours to continue; the reference.")
]
FormatName = Annotated[
    Format | None, typer.Option(metavar="NAME", help="Of all rows, instead of what the first of them tell.")
]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the prompts to evaluate on and not to train on; 0: none.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of refusing the file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]

# --- what is minimised --------------------------------------------------------------------------------

Objective = Annotated[
    str, typer.Option(metavar="LOSSES", help="A sum of losses, such as dpo, dpo+0.2*nll, dpo+kto, rpo.")
]
Beta = Annotated[float, typer.Option(help="How closely the policy stays to its reference.")]
LabelSmoothing = Annotated[float, typer.Option(help="Share of preferences taken to be wrong: for cdpo and robust.")]
LdAlpha = Annotated[float, typer.Option(help="Weight of the longer answer's tail (LD-DPO).")]
DesirableWeight = Annotated[float, typer.Option(help="KTO's weight of thumbs up.")]
UndesirableWeight = Annotated[float, typer.Option(help="KTO's weight of thumbs down.")]

# --- how --------------------------------------------------------------------------------------------

LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Epochs = Annotated[int, typer.Option(help="How often each row is seen.")]
PairsPerStep = Annotated[int, typer.Option(help="Rows an optimiser step learns from.")]
TokensPerMicroBatch = Annotated[
    int, typer.Option(help="Tokens in one forward pass; changes speed and memory, not what is learned.")
]
WarmupRatio = Annotated[float, typer.Option(help="Share of the steps that warm up.")]
MaxGradientNorm = Annotated[float, typer.Option(help="Longer gradients are clipped to it.")]
Seed = Annotated[int, typer.Option(help="Of the fresh adapter and of the order of rows.")]
Rank = Annotated[int | None, typer.Option(min=1, max=64, help="Of the adapter.  [default: 8, or the parent's]")]
Alpha = Annotated[
    int | None, typer.Option(min=1, help="The update is scaled by alpha / rank.  [default: 16, or the parent's]")
]

# --- with what ----------------------------------------------------------------------------------------

DType = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the frozen base; auto: what is faster.")
]
GradientCheckpointing = Annotated[
    Literal["auto", "on", "off"], typer.Option(help="Compute activations twice; auto: where memory asks for it.")
]
Trackers = Annotated[str, typer.Option(help="Of tensorboard, mlflow, wandb, with commas between; '' for none.")]
CheckpointSeconds = Annotated[float, typer.Option(help="Time between checkpoints.")]
Threads = Annotated[int | None, typer.Option(min=1, help="On a CPU.  [default: all cores]")]

# --- what it is called ----------------------------------------------------------------------------------

Ordinal = Annotated[int, typer.Option(help="The n of the adapter's name, policy-<n>-<digest>.")]
Round = Annotated[int, typer.Option(help="The number of the round, kept in the manifest.")]
