"""`make bench`: each benchmark measures us and a peer, or a promise of ours, and prints what can be pasted.

python -m tests.benchmarks                              all of them
python -m tests.benchmarks dpo_step --shape default     one, on one shape
"""

from __future__ import annotations

import argparse

from tests.benchmarks import (
    cpu_lora,
    dpo_step,
    drift,
    ingress,
    memory,
    overload,
    planning,
    preferences,
    recording,
    round_cost,
    scaling,
    serving,
    steady,
    swaps,
    vote_to_serving,
    votes,
)
from tests.benchmarks.shapes import SHAPES, TINY

OF_ONE_SHAPE = {
    "cpu_lora": cpu_lora.main,
    "drift": drift.main,
    "ingress": ingress.main,
    "memory": memory.main,
    "overload": overload.main,
    "planning": planning.main,
    "preferences": preferences.main,
    "recording": recording.main,
    "round_cost": round_cost.main,
    "scaling": scaling.main,
    "serving": serving.main,
    "steady": steady.main,
    "swaps": swaps.main,
    "vote_to_serving": vote_to_serving.main,
    "votes": votes.main,
}


def main() -> None:
    shapes = {shape.name: shape for shape in (*SHAPES, TINY)}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("benchmark", nargs="?", choices=["dpo_step", *OF_ONE_SHAPE])
    parser.add_argument("--shape", choices=list(shapes), help="of dpo_step; all but tiny when it is left out")
    arguments = parser.parse_args()
    if arguments.benchmark in (None, "dpo_step"):
        dpo_step.main([shapes[arguments.shape]] if arguments.shape else SHAPES)
    for name, run in OF_ONE_SHAPE.items():
        if arguments.benchmark in (None, name):
            run()


if __name__ == "__main__":
    main()
