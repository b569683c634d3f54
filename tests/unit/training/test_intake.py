"""A file on its way to a snapshot: read as a stream, split by prompt, counted, and refused with rows and reasons."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contracts import HELD_OUT, TRAIN
from training.errors import TrainingError
from training.formats import Preference
from training.intake import Fault, Intake, read
from training.snapshot import SnapshotRow, iterate, write_snapshot

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def ignore(fault: Fault) -> None:
    """For tests that look at the counts alone."""


def intake_of(share: float = 0.5, *, skip_bad: bool = False, on_fault: Callable[[Fault], None] = ignore) -> Intake:
    return Intake(share, skip_bad, on_fault)


def pair(row: int, prompt: str = "Hi", chosen: str = "Hello!") -> Preference:
    return Preference(row, "standard", [{"role": "user", "content": prompt}], chosen, "What?")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 512) -> Path:
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        list(read(path))


# --- files --------------------------------------------------------------------------------------------


def test_lines_keep_their_numbers_over_blank_and_bad_ones(tmp_path: Path) -> None:
    found = list(read(lines(tmp_path / "pairs.jsonl", PAIR, "\n", "{\n", PAIR | {"chosen": "Good day!"})))
    assert [item.row for item in found] == [1, 3, 4]
    assert isinstance(found[1], Fault) and found[1].reason.startswith("not valid JSON")


def test_separators_within_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIR | {"chosen": text}, ensure_ascii=False) + "\n")
    (found,) = read(path)
    assert isinstance(found, Preference) and found.chosen == text


def test_parquet_says_what_json_lines_say(tmp_path: Path) -> None:
    user, good, bad = (
        {"content": c, "role": r} for c, r in (("Hi", "user"), ("Hello!", "assistant"), ("?", "assistant"))
    )
    rows = [
        {"prompt": [user], "chosen": [good], "rejected": [bad], "score": 1.0},
        {"prompt": [user], "completion": [good], "label": False, "score": 0.5},
    ]
    assert list(read(parquet(tmp_path / "pairs.parquet", rows))) == list(read(lines(tmp_path / "pairs.jsonl", *rows)))


def test_a_bad_row_of_parquet_has_its_number(tmp_path: Path) -> None:
    found = list(read(parquet(tmp_path / "pairs.parquet", [PAIR, PAIR | {"chosen": " "}])))
    assert found[1] == Fault(2, "chosen", "empty text")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"prompt,chosen,rejected\na,b,c\n", "neither Parquet nor JSON lines"),
        (b"\x1f\x8b\x08compressed", "neither Parquet nor JSON lines"),
        (b'\n [{"prompt": "Hi"}]', "is one JSON array: .*jq"),
        (b"PAR1 and then nothing", "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(content)
    refused(tmp_path / "pairs.jsonl", reason)


def test_a_directory_and_parquet_with_other_columns_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")
    refused(parquet(tmp_path / "pairs.parquet", [{"question": "Hi"}]), "has the columns question")


def test_reading_lines_takes_no_more_memory_than_a_few_of_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "pairs.jsonl", *(PAIR | {"chosen": f"{i:04d}" * 500} for i in range(2000)))
    tracemalloc.start()
    rows = sum(1 for _ in read(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 2000
    assert peak_bytes < path.stat().st_size / 10


def test_reading_parquet_takes_no_more_memory_than_a_few_row_groups(tmp_path: Path) -> None:
    rows = [PAIR | {"chosen": f"{i:05d}" * 200} for i in range(512 * 20)]
    path = parquet(tmp_path / "pairs.parquet", rows)
    before_bytes = pa.total_allocated_bytes()
    peak_bytes = max(pa.total_allocated_bytes() - before_bytes for _ in read(path))
    assert 0 < peak_bytes < 1000 * len(rows) / 4


# --- rows of the snapshot -----------------------------------------------------------------------------


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
