"""A training process is killed wherever it may be; the next one goes on, and the adapter comes out the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests import tiny_models
from tests.round_specs import round_spec
from training.adapter import WEIGHTS
from training.contracts import HELD_OUT, TRAIN, LoraSpec, RoundSpec
from training.fingerprints import file_sha256
from training.snapshot import SnapshotRow

STEPS = 40
_LEARN = """
import sys, torch
from training.contracts import RoundSpec
from training.learn import learn
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
def tell(progress):
    print(progress.phase or progress.step.step, flush=True)
report = learn(RoundSpec.model_validate_json(sys.argv[1]), tell)
print(report.model_dump_json(), flush=True)
"""

Kill = Callable[[IO[str], Path], None]  # returns when the process should die


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the adapter that nobody disturbed."""
    return str(finished(spec(model, tmp_path_factory.mktemp("uninterrupted")))["adapter_digest"])


def spec(model: Path, folder: Path) -> RoundSpec:
    draw = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(6, 300) for _ in range(length)]

    rows = [
        SnapshotRow(f"{i:04d}", HELD_OUT if i % 4 == 3 else TRAIN, tokens(12), tokens(8), tokens(9)) for i in range(16)
    ]
    return round_spec(
        model, rows, folder, lora=LoraSpec(rank=4, alpha=8), pairs_per_step=6, epochs=STEPS // 2,
        seconds_between_checkpoints=0,
    )  # fmt: skip


def start(spec: RoundSpec) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _LEARN, spec.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def finished(spec: RoundSpec) -> dict[str, object]:
    """The report of a process that is left alone."""
    with start(spec) as process:
        output, _ = process.communicate()
        assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def at_line(line: str) -> Kill:
    """When the process has told this: it is reporting, or about to do what comes next."""

    def wait(output: IO[str], checkpoints: Path) -> None:
        assert any(said.strip() == line for said in output), "the process ended before"

    return wait


def while_a_checkpoint_is_written(output: IO[str], checkpoints: Path) -> None:
    at_line("3")(output, checkpoints)
    adapter = checkpoints.parent / "out" / "adapter"
    while not list(checkpoints.glob(".step-*.partial")) and not adapter.exists():  # there for a millisecond a step
        pass


@pytest.mark.parametrize(
    "kill",
    [at_line("reference"), at_line("1"), at_line("17"), while_a_checkpoint_is_written, at_line("write")],
    ids=["reference", "first step", "any step", "writing a checkpoint", "writing the adapter"],
)
def test_a_killed_round_goes_on_to_the_same_adapter(
    kill: Kill, model: Path, tmp_path: Path, uninterrupted: str
) -> None:
    round = spec(model, tmp_path)
    with start(round) as process:
        assert process.stdout is not None
        kill(process.stdout, tmp_path / "checkpoints")
        process.kill()
    if (tmp_path / "out" / "adapter").exists():  # it was quicker than the signal, and then it is complete
        digest = file_sha256(tmp_path / "out" / "adapter" / WEIGHTS)
    else:
        report = finished(round)
        assert report["step0_max_abs_logratio"] == 0.0
        digest = str(report["adapter_digest"])
    assert digest == uninterrupted
