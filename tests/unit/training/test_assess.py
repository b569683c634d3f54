"""An adapter that was made elsewhere is measured as a round's own would be, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.conftest import MakeSpec, random_rows
from training.adapter import read_adapter
from training.assess import assess
from training.contracts import HELD_OUT, LoraSpec, Progress, RoundReport
from training.errors import AdapterInvalid
from training.learn import learn


def ignore(progress: Progress) -> None:
    """For tests that look at the report alone."""


def elsewhere(make_spec: MakeSpec, folder: Path) -> RoundReport:
    """An adapter that somebody trained on the same base model."""
    where = {name: str(folder / name) for name in ("out", "storage", "checkpoints")}
    return learn(make_spec(**where, learning_rate=1e-2), ignore)


def test_a_candidate_is_measured_on_the_held_out_pairs_and_gets_a_name_of_this_round(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    theirs = elsewhere(make_spec, tmp_path / "theirs")
    report = assess(make_spec(candidate=theirs.adapter_directory, adapter_ordinal=7), ignore)
    assert report.candidate == theirs.candidate  # the same pairs, the same policy
    assert report.current == theirs.current
    assert (report.steps, report.pairs_trained, report.pairs_held_out) == ((), 0, 8)
    assert report.adapter_digest == theirs.adapter_digest
    assert report.drift is not None and report.drift.kl_previous > 0
    manifest, _ = read_adapter(Path(report.adapter_directory))
    assert manifest.name == f"policy-0007-{theirs.adapter_digest[:8]}" == report.adapter_name
    assert manifest.parent is None  # it stands on the base, whatever is deployed


def test_without_held_out_pairs_there_is_nothing_to_say_of_it(make_spec: MakeSpec, tmp_path: Path) -> None:
    theirs = elsewhere(make_spec, tmp_path / "theirs")
    rows = [row for row in random_rows(8) if row.split != HELD_OUT]
    report = assess(make_spec(rows=rows, candidate=theirs.adapter_directory), ignore)
    assert (report.candidate, report.current, report.drift, report.samples) == (None, None, None, None)


def test_a_candidate_of_another_shape_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    theirs = elsewhere(make_spec, tmp_path / "theirs")
    spec = make_spec(candidate=theirs.adapter_directory, lora=LoraSpec(rank=8, alpha=8))
    with pytest.raises(AdapterInvalid, match="the round asks for rank 8"):
        assess(spec, ignore)
    assert not (Path(spec.out) / "adapter").exists()
