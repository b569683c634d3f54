"""Runs sides of a benchmark, each in a process of its own, one after the other.

Whoever imports this imports no torch: a process inherits its parent's peak of memory until it has started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.shapes import Shape

CORES = len(os.sched_getaffinity(0))
# The threads of torch, and no look at the network.
_ENVIRONMENT = {"OMP_NUM_THREADS": str(CORES), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_LINES_OF_A_FAILURE = 20


def prepare(shape: Shape, folder: Path) -> dict[str, Any]:
    """Makes what the sides of this shape work on, in the folder."""
    folder.mkdir(parents=True)
    shape.write(folder)
    return run("prepare", folder)


def run(side: str, folder: Path) -> dict[str, Any]:
    """What the side measured. Raises `RuntimeError` with the end of its output when it fails."""
    print(f"  {folder.name}: {side} ...", file=sys.stderr, flush=True)
    log = folder / f"{side}.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.benchmarks.side", side, str(folder)]
        ended = subprocess.run(command, env=os.environ | _ENVIRONMENT, stdout=output, stderr=output, check=False)
    if ended.returncode:
        last = log.read_text(errors="replace").splitlines()[-_LINES_OF_A_FAILURE:]
        raise RuntimeError(f"{side} on {folder.name} ended with {ended.returncode}:\n" + "\n".join(last))
    return json.loads((folder / f"{side}.json").read_text())
