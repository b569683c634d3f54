"""`make chaos`: many runs, each from a seed of its own, with the sum at the end.

python -m tests.chaos                                200 runs
python -m tests.chaos --runs 1 --seed 17 --keep DIR  one that failed, again; its histories and logs stay in DIR
python -m tests.chaos --rounds --kills 100 --seed 1  one run of rounds, of whose processes so many are killed
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.database import Database
from tests.chaos.rounds.run import run as run_rounds
from tests.chaos.run import Report, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next one has the next")
    parser.add_argument("--votes", type=int, default=500, help="acknowledged in each run, at least")
    parser.add_argument("--keep", type=Path, help="a new folder for what the runs write; a temporary one if left out")
    parser.add_argument("--rounds", action="store_true", help="kill the processes of rounds, in one run")
    parser.add_argument("--kills", type=int, default=100, help="in a run of rounds")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        database = Database(folder / "database")
        stack.callback(database.stop)
        database.start()
        if arguments.rounds:
            return _rounds(database, folder, arguments.seed, arguments.kills)
        return _votes(database, folder, range(arguments.seed, arguments.seed + arguments.runs), arguments.votes)


def _rounds(database: Database, folder: Path, seed: int, kills: int) -> int:
    of_run = folder / f"rounds-{seed}"
    of_run.mkdir()
    report = run_rounds(database, of_run, seed, kills)
    print(report)
    for reason, times in report.reasons.most_common():
        print(f"  {times} x {reason}")
    print("".join(f"  {fault}\n" for fault in report.findings.faults), end="")
    return 1 if report.findings.faults else 0


def _votes(database: Database, folder: Path, seeds: range, votes: int) -> int:
    began, reports, faults = time.monotonic(), list[Report](), list[str]()
    for seed in seeds:
        of_run = folder / f"seed-{seed}"
        of_run.mkdir()
        reports.append(run(database, of_run, seed, votes))
        print(f"{len(reports):>4} of {len(seeds)}  {reports[-1]}", flush=True)
        found = reports[-1].findings.faults
        faults += found
        print("".join(f"      {fault}\n" for fault in found), end="", flush=True)
    print(_sum(reports, faults, time.monotonic() - began))
    return 1 if faults else 0


def _sum(reports: list[Report], faults: list[str], seconds: float) -> str:
    kills = sum((report.kills for report in reports), Counter[str]())
    votes = sum(report.findings.acknowledged for report in reports)
    unknown = sum(report.findings.unknown for report in reports)
    killed = ", ".join(f"{count} {victim}" for victim, count in kills.most_common())
    return (
        f"{len(reports)} runs in {seconds:.0f} s: {votes} votes acknowledged, {unknown} unknown; "
        f"{kills.total()} kills ({killed}); {len(faults)} faults"
    )


if __name__ == "__main__":
    sys.exit(main())
