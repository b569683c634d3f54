"""A round of ours against TRL, on the same token ids, model, LoRA, order, batch and threads, in float32.

Each side runs from token ids to the adapter on disk, its model's loading included, in a process of its own. The limit
is this machine's matrix-product rate, measured before and after, over the operations that `Shape.floor` counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import CORES, prepare, run
from tests.benchmarks.shapes import SHAPES, Shape

_PEERS = ("trl_default", "trl_best")
_HEADER = (
    "shape", "P / C / R", "pairs", "a step", "epochs",
    "ours, pairs/s", "TRL default", "TRL best", "x default", "x best", "of the limit", "training alone",
    "ours, MB", "TRL default, MB", "TRL best, MB",
)  # fmt: skip


def main(shapes: Sequence[Shape] = SHAPES) -> None:
    llama = shapes[0].llama
    print(
        f"LoRA-DPO, float32, {CORES} threads, Llama of {llama.parameters / 1e6:.0f} M "
        f"parameters (hidden {llama.hidden}, {llama.layers} layers, vocabulary {llama.vocabulary}), peer: TRL 1.16"
    )
    with tempfile.TemporaryDirectory() as folder:
        measured = [_measure(shape, Path(folder) / shape.name) for shape in shapes]
    print(_row(_HEADER))
    print(_row("---" for _ in _HEADER))
    for shape, sides in zip(shapes, measured, strict=True):
        print(_row(_cells(shape, sides)))
    print("\nof the limit: unavoidable operations over seconds, as a share of the matrix-product rate; training alone:")
    print("the same over the reference and training phases. MB: peak of the process, and above what its imports take.")
    for shape, sides in zip(shapes, measured, strict=True):
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in sides["ours"]["phases"].items())
        print(f"{shape.name}: {sides['rate'] / 1e9:.0f} GFLOP/s; ours, seconds: {phases}")


def _measure(shape: Shape, folder: Path) -> dict[str, Any]:
    floor = prepare(shape, folder)["floor"]
    before = run("matrix_rate", folder)["rate"]
    sides = {side: run(side, folder) for side in ("ours", *_PEERS)}
    rate = max(before, run("matrix_rate", folder)["rate"])
    return sides | {"floor": floor, "rate": rate}


def _cells(shape: Shape, measured: dict[str, Any]) -> list[str]:
    ours, default, best = (measured[side] for side in ("ours", *_PEERS))
    limit_seconds = measured["floor"] / measured["rate"]
    computing = ours["phases"]["reference"] + ours["phases"]["train"]
    pairs = shape.pairs * shape.epochs
    return [
        shape.name, f"{shape.prompt} / {shape.answer} / {shape.answer}", str(shape.pairs), str(shape.batch), str(shape.epochs),
        *(f"{pairs / side['seconds']:.2f}" for side in (ours, default, best)),
        *(f"{side['seconds'] / ours['seconds']:.1f}" for side in (default, best)),
        f"{limit_seconds / ours['seconds']:.0%}", f"{limit_seconds / computing:.0%}",
        *(_memory(side) for side in (ours, default, best)),
    ]  # fmt: skip


def _memory(side: dict[str, Any]) -> str:
    return f"{side['peak_bytes'] / 1e6:.0f} (+{(side['peak_bytes'] - side['before_bytes']) / 1e6:.0f})"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
