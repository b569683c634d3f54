"""Which GPUs a round needs: `python -m training.sizing` prints what each of some takes for models of three sizes.

    python -m training.sizing                                  the table of k8s/README.md
    python -m training.sizing model/config.json --pairs 5000   the same for a model and a round of one's own

Computed and not measured: `footprint.py` has the formulas. Imports no torch, and looks at no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from training.cost import USABLE_SHARE
from training.footprint import Memory, Work, gathered_bytes, memory, operations
from training.model_shape import ModelShape

GIB, MIB = 2**30, 2**20
NETWORK = 12.5e9  # bytes a second between nodes: 100 Gb/s
SHARE_OF_PEAK = 0.4  # that training reaches in practice: 38 to 43 % of the H100's in arXiv:2407.21783, table 4
RESERVED_BYTES = 2 * GIB  # for CUDA itself, its libraries' workspaces, and holes between allocations
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Gpu:
    memory_bytes: int  # as nvidia-smi shows it
    peak: float  # operations a second: dense bfloat16 with float32 sums, as the data sheet says
    link: float  # bytes a second that one receives from its neighbours: NVLink, or PCIe 4.0


GPUS = {
    "RTX 4090": Gpu(24564 * MIB, 165.2e12, 32e9),
    "L4": Gpu(23034 * MIB, 121e12, 32e9),
    "A100-80": Gpu(81920 * MIB, 312e12, 300e9),
    "H100-80": Gpu(81559 * MIB, 989e12, 450e9),
    "H200": Gpu(143771 * MIB, 989e12, 450e9),
}
MODELS = {
    "Qwen3-0.6B": ModelShape(1024, 28, 3072, 16, 8, 128, 151936, True, 2, 2),
    "Llama-3.1-8B": ModelShape(4096, 32, 14336, 32, 8, 128, 128256, False),
    "Qwen3-32B": ModelShape(5120, 64, 25600, 64, 8, 128, 151936, False, 2, 2),
    "Llama-3.1-70B": ModelShape(8192, 80, 28672, 64, 8, 128, 128256, False),
}
HEADER = (
    "model", "GPU", "of them", "weights", "adapter", "activations", "logits", "together", "GPU has", "activations are",
    "host GiB a worker", "passes", "gathering, one node", "several nodes",
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How a round fits the fewest GPUs of a kind, and how long it takes there."""

    work: Work
    memory: Memory
    seconds: float  # of computing
    gathered_bytes: float  # that each receives of a sharded base
    host_bytes: float  # each worker reads the whole base before its GPU gets its part


def fit(shape: ModelShape, gpu: Gpu, work: Work, share_of_peak: float = SHARE_OF_PEAK) -> Fit | None:
    """On the fewest GPUs; activations are kept where they fit. None: not even on the most of `COUNTS`."""
    for gpus, checkpointing in product(COUNTS, (False, True)):
        spread = replace(work, gpus=gpus, sharded=gpus > 1, checkpointing=checkpointing)
        needed = memory(shape, spread)
        if _fits(needed, gpu, spread):
            return Fit(
                spread, needed,
                operations(shape, spread).total * spread.busiest_share / (gpu.peak * share_of_peak),
                gathered_bytes(shape, spread),
                spread.parameter_bytes * shape.parameters,
            )  # fmt: skip
    return None


def _fits(needed: Memory, gpu: Gpu, work: Work) -> bool:
    """`needs_checkpointing` keeps a part of what is free for what comes and goes, and so does this."""
    usable = gpu.memory_bytes - RESERVED_BYTES
    kept = work.checkpointing or needed.activations <= USABLE_SHARE * (usable - needed.weights - needed.adapter)
    return kept and needed.total <= usable


def table(models: Mapping[str, ModelShape], work: Work, share_of_peak: float = SHARE_OF_PEAK) -> str:
    """Markdown, and what it rests on below it."""
    rows = [HEADER, ("---",) * len(HEADER), *_rows(models, work, share_of_peak)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *_notes(work, share_of_peak)])


def _rows(models: Mapping[str, ModelShape], work: Work, share_of_peak: float) -> Iterator[tuple[str, ...]]:
    for (model, shape), (name, gpu) in product(models.items(), GPUS.items()):
        found = fit(shape, gpu, work, share_of_peak)
        if found is None:
            yield model, name, f"more than {COUNTS[-1]}", *("",) * (len(HEADER) - 3)
            continue
        needed, gpus = found.memory, found.work.gpus
        parts = (needed.weights, needed.adapter, needed.activations, needed.logits, needed.total, gpu.memory_bytes)
        yield (
            model, name, str(gpus), *(f"{part / GIB:.1f}" for part in parts),
            "computed twice" if found.work.checkpointing else "kept", f"{found.host_bytes / GIB:.0f}",
            _time(found.seconds), *(_time(found.gathered_bytes / rate) if gpus > 1 else "" for rate in (gpu.link, NETWORK)),
        )  # fmt: skip


def _notes(work: Work, share_of_peak: float) -> Iterator[str]:
    yield (
        f"Computed, not measured: {work.pairs} pairs of {work.prompt} + {work.chosen} + {work.rejected} tokens, "
        f"{work.epochs} epochs, rank {work.rank}, {work.pairs_per_step} pairs a step, micro-batches of at most "
        f"{work.tokens_per_micro_batch} tokens, base in bfloat16;"
    )
    yield (
        f"GiB of one GPU, of which {RESERVED_BYTES / GIB:.0f} are left to CUDA; passes at {share_of_peak:.0%} of the "
        "peak; gathering a sharded base's layers at the full rate of NVLink or PCIe, or of a network of 100 Gb/s, which "
        "comes on top where it does not overlap the passes. Each worker reads the whole base into its host's memory first."
    )
    yield "Of more GPUs than one: `training.workers` = their number, `training.shard_base = true`."


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_WORK = Work()


@app.command()
def main(
    config: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="A model's config.json; else those of some known models."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1)] = _WORK.pairs,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens.")] = _WORK.prompt,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of each of a pair's two.")] = _WORK.chosen,
    epochs: Annotated[int, typer.Option(min=1)] = _WORK.epochs,
    rank: Annotated[int, typer.Option(min=1, max=64)] = _WORK.rank,
    pairs_per_step: Annotated[int, typer.Option(min=1)] = _WORK.pairs_per_step,
    tokens_per_micro_batch: Annotated[int, typer.Option(min=64)] = _WORK.tokens_per_micro_batch,
    share_of_peak: Annotated[float, typer.Option(min=0.01, max=1, help="That training reaches.")] = SHARE_OF_PEAK,
) -> None:
    """Which GPUs a round needs, how much memory of each and how long. Computed, not measured."""
    work = Work(pairs, prompt, answer, answer, epochs, rank, pairs_per_step, tokens_per_micro_batch)
    models = MODELS
    if config is not None:
        try:
            models = {config.parent.name or str(config): ModelShape.of(json.loads(config.read_text()))}
        except ValueError as error:  # of JSON too
            raise typer.BadParameter(str(error), param_hint="CONFIG") from None
    typer.echo(table(models, work, share_of_peak))


if __name__ == "__main__":
    app(prog_name="python -m training.sizing")
