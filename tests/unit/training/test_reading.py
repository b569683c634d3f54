"""Files of preferences: lines and Parquet as a stream, with the number of every row, and refused as a whole."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.errors import TrainingError
from training.formats import Preference, Recognised
from training.reading import MAX_LINE_BYTES, Fault, read

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


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
        (b"\x1f\x8b\x08compressed", "cannot be read"),
        (gzip.compress(b"PAR1"), "neither Parquet nor JSON lines"),
        (gzip.compress(b'{"prompt": "Hi"}' * 100)[:-12], "cannot be read"),
        (b'\n [{"prompt": "Hi"}]', "is one JSON array: .*jq"),
        (b"PAR1 and then nothing", "cannot be read"),
    ],
    ids=["csv", "no gzip", "gzip of Parquet", "gzip cut short", "JSON array", "no Parquet"],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(content)
    refused(tmp_path / "pairs.jsonl", reason)


def test_a_directory_and_parquet_with_other_columns_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")
    refused(parquet(tmp_path / "pairs.parquet", [{"text": "Hi"}]), "has the columns text")


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


def test_a_packed_file_says_what_the_file_says(tmp_path: Path) -> None:
    plain = lines(tmp_path / "pairs.jsonl", PAIR, "{\n", PAIR)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read(tmp_path / "pairs.jsonl.gz")) == list(read(plain))


def test_the_format_is_told_before_the_first_row_and_what_is_asked_for_wins(tmp_path: Path) -> None:
    path = lines(tmp_path / "pairs.jsonl", "{\n", PAIR, {"text": "x"})
    told: list[Recognised] = []
    rows = read(path, on_format=told.append)
    next(rows)
    assert [str(found) for found in told] == ["trl (1 of 2 first rows)"]
    rows.close()
    assert [type(row) for row in read(path, "openai")] == [Fault, Fault, Fault]


def test_a_row_in_the_format_of_another_file_is_a_fault_in_this_one(tmp_path: Path) -> None:
    openai = {"input": {"messages": [{"role": "user", "content": "Hi"}]},
              "preferred_output": [{"role": "assistant", "content": "a"}],
              "non_preferred_output": [{"role": "assistant", "content": "b"}]}  # fmt: skip
    *first, last = read(lines(tmp_path / "pairs.jsonl", *[openai] * 40, PAIR))
    assert all(isinstance(row, Preference) for row in first)
    assert isinstance(last, Fault)
    assert (last.row, last.reason.partition(":")[0]) == (41, "its format is trl, not openai")


def test_a_line_without_end_is_a_fault_and_the_next_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = json.dumps(PAIR).encode()
    path.write_bytes(row + b'\n{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}\n' + row)
    first, long, last = read(path)
    assert isinstance(first, Preference) and isinstance(last, Preference)
    assert isinstance(long, Fault) and "longer than 16 MiB" in long.reason
    assert (first.row, long.row, last.row) == (1, 2, 3)


def test_messages_call_the_file_what_they_are_told_to(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a,b,c")
    with pytest.raises(TrainingError, match=r"^the body is neither Parquet"):
        list(read(tmp_path / "x", name="the body"))
