"""`python -m training.replay SPEC --threads N`: one recorded round once more, in this process, to compare what comes out.

SPEC is a `RoundSpec` as JSON. The report goes to standard output as one line of JSON, progress to standard error; what
goes wrong ends in one line and status 1. On the CPU, for only there are the same sums promised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from training import display
from training.contracts import Progress, RoundReport, RoundSpec
from training.errors import TrainingError
from training.process import settle

_NICENESS = 10  # as in a round: chat keeps the cores

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    spec: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    threads: Annotated[int, typer.Option(min=1, help="As many as the round had: sums depend on it.")],
) -> None:
    """Train a recorded round again."""
    said = display.console(stderr=True)
    try:
        with display.shown(said) as report:
            learned = train(RoundSpec.model_validate_json(spec.read_bytes()), threads, report)
    except (TrainingError, OSError) as error:
        said.print(f"error: {display.one_line(str(error))}", style="red")
        raise typer.Exit(1) from None
    typer.echo(learned.model_dump_json())


def train(spec: RoundSpec, threads: int, report: Callable[[Progress], None]) -> RoundReport:
    """The round as its worker ran it. Raises a `TrainingError`, also when the pairs are no longer those of then."""
    os.nice(_NICENESS)
    settle(threads, on_gpu=False)

    from training.learn import learn

    return learn(spec, report)


if __name__ == "__main__":
    app(prog_name="python -m training.replay")
