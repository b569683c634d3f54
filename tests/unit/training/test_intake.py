"""Preferences on their way to a snapshot: split by prompt, counted, and refused with rows and reasons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from training.contracts import HELD_OUT, TRAIN
from training.errors import TrainingError
from training.formats import Preference
from training.intake import Intake
from training.reading import Fault
from training.snapshot import SnapshotRow, iterate, write_snapshot


def ignore(fault: Fault) -> None:
    """For tests that look at the counts alone."""


def intake_of(share: float = 0.5, *, skip_bad: bool = False, on_fault: Callable[[Fault], None] = ignore) -> Intake:
    return Intake(share, skip_bad, on_fault)


def pair(row: int, prompt: str = "Hi", chosen: str = "Hello!") -> Preference:
    return Preference(row, "trl", [{"role": "user", "content": prompt}], chosen, "What?")


def test_rows_are_in_order_and_unique_although_they_repeat_each_other(tmp_path: Path) -> None:
    rows = list(intake_of().rows(pair(row) for row in (9, 10, 11)))
    assert [row.pair_id for row in rows] == sorted({row.pair_id for row in rows})
    write_snapshot(tmp_path / "snapshot.parquet", iter(rows))
    assert list(iterate(tmp_path / "snapshot.parquet")) == rows


def test_rows_are_taken_one_at_a_time() -> None:
    endless = (pair(row) for row in itertools.count(1))
    assert len(list(itertools.islice(intake_of().rows(endless), 3))) == 3


def splits(share: float, found: Iterable[Preference]) -> list[str]:
    return [row.split for row in intake_of(share).rows(found)]


def test_a_prompt_is_always_on_the_same_side_and_the_share_is_about_right() -> None:
    some = splits(0.1, (pair(i, prompt=str(i)) for i in range(1, 2001)))
    assert 0.07 < some.count(HELD_OUT) / len(some) < 0.13
    assert some == splits(0.1, (pair(i, prompt=str(i), chosen="Another answer") for i in range(1, 2001)))
    assert set(splits(0, (pair(i, prompt=str(i)) for i in range(1, 100)))) == {TRAIN}


def test_a_thumb_goes_where_the_pairs_of_its_prompt_go() -> None:
    def thumb(row: int, prompt: str) -> Preference:
        return Preference(row, "kto", [{"role": "user", "content": prompt}], None, "No.")

    prompts = [str(i) for i in range(50)]
    pairs = splits(0.5, (pair(i, prompt) for i, prompt in enumerate(prompts)))
    thumbs = splits(0.5, (thumb(i, prompt) for i, prompt in enumerate(prompts)))
    assert pairs == thumbs
    assert set(pairs) == {TRAIN, HELD_OUT}


def test_every_fault_is_told_before_the_file_is_refused() -> None:
    told: list[Fault] = []
    faults = [Fault(1, None, "a"), Fault(3, "chosen", "b")]
    with pytest.raises(TrainingError, match=r"2 of 3 rows are bad, so nothing is trained: .*--skip-bad"):
        list(intake_of(on_fault=told.append).rows([faults[0], pair(2), faults[1]]))
    assert told == faults


def test_skipped_rows_are_counted_and_the_others_keep_their_numbers() -> None:
    intake = intake_of(skip_bad=True)
    rows: list[SnapshotRow] = list(intake.rows([Fault(1, None, "a"), pair(2), Fault(3, None, "b"), pair(4)]))
    assert (len(rows), len(intake), intake.faults) == (2, 2, 2)
    assert [intake.number_in_file(row) for row in (1, 2)] == [2, 4]


def test_what_leaves_nothing_to_train_on_is_refused_with_the_remedy() -> None:
    def require(objective: str, found: list[Preference], share: float = 0.0) -> None:
        intake = intake_of(share)
        list(intake.rows(found))
        intake.require_enough(objective)

    thumb = Preference(1, "kto", [{"role": "user", "content": "Hi"}], "Hello!", None)
    require("kto", [thumb])
    require("dpo+kto", [thumb])
    require("kto", [pair(1)])
    with pytest.raises(TrainingError, match="--objective kto"):
        require("dpo+0.2*nll", [thumb])
    with pytest.raises(TrainingError, match="--held-out"):
        require("dpo", [pair(1)], share=1.0)
    with pytest.raises(TrainingError, match="no preferences"):
        require("dpo", [])
