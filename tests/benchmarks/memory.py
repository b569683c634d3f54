"""Peak memory of a round of ours over a thousand pairs and over a hundred thousand: what should not grow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.processes import prepare, run
from tests.benchmarks.shapes import many

_PAIRS = (1_000, 100_000)


def main() -> None:
    print("Peak memory of a round, tiny Llama, short pairs:")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for pairs in _PAIRS:
            shape = many(pairs)
            prepare(shape, Path(folder) / shape.name)
            measured = run("ours", Path(folder) / shape.name)
            peaks.append(measured["peak_bytes"])
            print(f"  {pairs:7,} pairs  {peaks[-1] / 1e6:5.0f} MB  {measured['seconds']:5.0f} s")
    print(f"  {(peaks[-1] - peaks[0]) / (_PAIRS[-1] - _PAIRS[0]):+.0f} bytes a pair")
