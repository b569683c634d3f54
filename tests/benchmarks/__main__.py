"""`make bench`: each benchmark measures us and a peer, or a promise of ours, and prints what can be pasted.

python -m tests.benchmarks                              all of them
python -m tests.benchmarks dpo_step --shape default     one, on one shape
"""

from __future__ import annotations

import argparse

from tests.benchmarks import dpo_step, memory, preferences, recording, round_cost, votes
from tests.benchmarks.shapes import SHAPES, TINY


def main() -> None:
    shapes = {shape.name: shape for shape in (*SHAPES, TINY)}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    names = ["dpo_step", "memory", "preferences", "recording", "round_cost", "votes"]
    parser.add_argument("benchmark", nargs="?", choices=names)
    parser.add_argument("--shape", choices=list(shapes), help="of dpo_step; all but tiny when it is left out")
    arguments = parser.parse_args()
    if arguments.benchmark in (None, "dpo_step"):
        dpo_step.main([shapes[arguments.shape]] if arguments.shape else SHAPES)
    if arguments.benchmark in (None, "memory"):
        memory.main()
    if arguments.benchmark in (None, "preferences"):
        preferences.main()
    if arguments.benchmark in (None, "recording"):
        recording.main()
    if arguments.benchmark in (None, "round_cost"):
        round_cost.main()
    if arguments.benchmark in (None, "votes"):
        votes.main()


if __name__ == "__main__":
    main()
