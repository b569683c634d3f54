"""LoRA on a CPU: tokens a second of our engine beside vLLM's own and beside engines without an adapter.

    python -m tests.benchmarks.cpu_lora [--compiled] [--rounds 5]

All engines run at the same time, each in a process of its own, and are asked in turn, so that a machine that others use
is as slow for each; who has answered is waited for until it is quiet, and the best of all rounds counts. `bare` is vLLM
compiled and without LoRA: what an adapter that costs nothing would reach. `--compiled` measures `serving.compiled`
instead of the default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from serving import machine
from serving.machine import Machine
from serving.settings import ServingSettings
from tests.benchmarks.engine_side import NO_PLUGIN, Work
from tests.benchmarks.quiet import until_quiet

ROUNDS = 5
CASES = {"base": (-1,), "one adapter": (0,), "base and two adapters": (-1, 0, 1)}
WORK = {
    **{f"decode {n}": (n, 32, 64) for n in (1, 8, 32)},  # requests, tokens of a prompt and of an answer
    "prefill": (8, 512, 1),
}
DECODE_BAR, PREFILL_BAR = 1.8, 4.0  # times vLLM's own with one adapter


class Engine:
    """The parent's side of `engine_side.py`."""

    def __init__(self, side: str, folder: Path) -> None:
        threads = machine.thread_variables(ServingSettings(), Machine.here())
        quiet = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
        environment = os.environ | quiet | threads | (NO_PLUGIN if side in ("vllm", "bare") else {})
        command = [sys.executable, "-m", "tests.benchmarks.engine_side", side, str(folder)]
        self._side = side
        self._log = (folder / f"{side}.log").open("wb")
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> Engine:
        assert self._hear() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def seconds(self, work: Work) -> float:
        assert self._process.stdin is not None
        print(json.dumps(asdict(work)), file=self._process.stdin, flush=True)
        seconds = float(self._hear())
        until_quiet(self._process.pid)
        return seconds

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._side} ended with {self._process.wait()}: see {self._log.name}")
        return json.loads(line)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cpu_lora")
    parser.add_argument("--compiled", action="store_true", help="serving.compiled instead of the default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the best of so many counts")
    options = parser.parse_args(arguments)
    us = "compiled" if options.compiled else "ours"
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "tests.benchmarks.engine_side", "prepare", name], check=True)
        engines = {side: running.enter_context(Engine(side, folder)) for side in (us, "vllm", "bare")}
        print("LoRA on a CPU, Llama of 4 layers and hidden size 256, float32, rank 8, tokens a second:")
        for case, adapters in CASES.items():
            for what, (requests, prompt, answer) in WORK.items():
                if requests >= len(adapters):
                    work = Work(adapters, requests, prompt, answer)
                    print(_row(case, what, _measured(engines, work, options.rounds), us), flush=True)


def _measured(engines: dict[str, Engine], work: Work, rounds: int) -> dict[str, float]:
    """Tokens a second of each engine; the bare one does the same work without adapters. The first round warms up."""
    plain = Work((-1,), work.requests, work.prompt_tokens, work.answer_tokens)
    best = dict.fromkeys(engines, float("inf"))
    for number in range(rounds + 1):
        for side, engine in engines.items():
            seconds = engine.seconds(plain if side == "bare" else work)
            if number:
                best[side] = min(best[side], seconds)
    return {side: work.tokens / seconds for side, seconds in best.items()}


def _row(case: str, what: str, tokens: dict[str, float], us: str) -> str:
    ours, peer, bare = tokens[us], tokens["vllm"], tokens["bare"]
    row = f"  {case:<22} {what:<10} {us} {ours:7.0f}   vLLM {peer:7.0f}   {ours / peer:5.2f} x   bare {bare:7.0f} {ours / bare:5.0%}"
    if case != "one adapter":
        return row
    bar = PREFILL_BAR if what == "prefill" else DECODE_BAR
    return f"{row}   {'PASS' if ours / peer >= bar else 'short of'} {bar} x"


if __name__ == "__main__":
    main(sys.argv[1:])
