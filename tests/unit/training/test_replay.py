"""`python -m training.replay`: a recorded round once more, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.round_specs import round_spec
from training.contracts import HELD_OUT, TRAIN, LoraSpec, RoundReport, RoundSpec
from training.snapshot import SnapshotRow, write_snapshot

ROOT = Path(__file__).parents[3]


@pytest.fixture
def spec(models: dict[str, Path], tmp_path: Path) -> RoundSpec:
    rows = [
        SnapshotRow(f"{i:04d}", HELD_OUT if i % 4 == 3 else TRAIN, [6, 7, 8 + i], [20 + i, 9, 3], [30 + i, 3])
        for i in range(16)
    ]
    return round_spec(models["llama"], rows, tmp_path, pairs_per_step=8, lora=LoraSpec(rank=4, alpha=8))


def replay(spec: RoundSpec, folder: Path) -> subprocess.CompletedProcess[str]:
    places = {"out": str(folder / "out"), "storage": str(folder / "ray"), "checkpoints": str(folder / "checkpoints")}
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_copy(update=places).model_dump_json())
    command = [sys.executable, "-m", "training.replay", str(folder / "spec.json"), "--threads", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_replays_give_the_same_bytes_and_another_seed_gives_others(spec: RoundSpec, tmp_path: Path) -> None:
    specs = (spec, spec, spec.model_copy(update={"seed": 1}))
    ended = [replay(each, tmp_path / str(n)) for n, each in enumerate(specs)]
    assert [each.returncode for each in ended] == [0, 0, 0], ended[0].stderr[-2000:]
    first, again, other = (RoundReport.model_validate_json(each.stdout.splitlines()[-1]) for each in ended)
    assert first.adapter_digest == again.adapter_digest != other.adapter_digest
    assert first.peak_bytes is not None and first.peak_bytes > 1 << 27, "torch alone takes more than that"


def test_pairs_that_are_not_those_of_then_end_it_in_one_line(spec: RoundSpec, tmp_path: Path) -> None:
    write_snapshot(Path(spec.snapshot), [SnapshotRow("0001", TRAIN, [6, 7], [8, 3], [9, 3])])
    ended = replay(spec, tmp_path / "other")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
