"""The snapshot: what is written is what is read, its digest is of its content, and bad rows are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.contracts import HELD_OUT, TRAIN
from training.errors import SnapshotInvalid
from training.snapshot import SnapshotRow, pair_digest, read_snapshot, write_snapshot

SERVED = SnapshotRow("b", TRAIN, (1, 2), (3, 4), (5,))
IMPORTED = SnapshotRow(
    "a", HELD_OUT, messages='[{"role":"user","content":"Hi ☀"}]', chosen_text="Hello", rejected_text="No"
)
ROWS = [SERVED, IMPORTED]


def as_read(row: SnapshotRow) -> SnapshotRow:
    """Parquet gives lists back, never tuples."""
    ids = {n: list(v) for n in ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids") if (v := getattr(row, n))}
    return replace(row, **ids)


def test_written_rows_are_read_back_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "snapshot.parquet"
    digest = write_snapshot(path, ROWS)
    assert read_snapshot(path) == [as_read(IMPORTED), as_read(SERVED)]
    assert digest == pair_digest(read_snapshot(path)) == pair_digest(ROWS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@given(st.permutations([replace(SERVED, pair_id=f"{i}", chosen_token_ids=(i + 9,)) for i in range(5)]))
def test_the_digest_does_not_depend_on_the_order_of_rows(rows: list[SnapshotRow]) -> None:
    assert pair_digest(rows) == pair_digest(sorted(rows, key=lambda row: row.pair_id))


@pytest.mark.parametrize(
    "changed",
    [
        replace(SERVED, pair_id="c"),
        replace(SERVED, split=HELD_OUT),
        replace(SERVED, prompt_token_ids=(1,)),
        replace(SERVED, chosen_token_ids=(3, 4, 2)),
        replace(SERVED, chosen_token_ids=(5,), rejected_token_ids=(3, 4)),
    ],
)
def test_the_digest_depends_on_every_value(changed: SnapshotRow) -> None:
    assert pair_digest([changed]) != pair_digest([SERVED])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (replace(SERVED, pair_id=""), "pair_id is empty"),
        (replace(SERVED, split="test"), "split 'test'"),
        (replace(SERVED, chosen_token_ids=None), "give either"),
        (replace(SERVED, messages="[]", chosen_text="x", rejected_text="y"), "give either"),
        (replace(SERVED, prompt_token_ids=()), "prompt_token_ids is empty"),
        (replace(SERVED, rejected_token_ids=(-1,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(2**31,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(3, 4)), "the same tokens"),
        (replace(IMPORTED, messages="{"), "not JSON"),
        (replace(IMPORTED, messages="[]"), "non-empty list"),
        (replace(IMPORTED, messages='[{"role": "user"}]'), "lacks its role or its content"),
        (replace(IMPORTED, chosen_text=""), "empty"),
        (replace(IMPORTED, chosen_text="No"), "the same text"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_nothing_is_written(row: SnapshotRow, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.parquet"
    with pytest.raises(SnapshotInvalid, match=reason) as refusal:
        write_snapshot(path, [row])
    assert repr(row.pair_id) in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match="'b': the pair_id occurs twice"):
        write_snapshot(tmp_path / "s", [SERVED, SERVED])


def test_a_prompt_in_both_splits_is_refused(tmp_path: Path) -> None:
    leaked = replace(SERVED, pair_id="c", split=HELD_OUT, chosen_token_ids=(9,))
    with pytest.raises(SnapshotInvalid, match="both splits"):
        write_snapshot(tmp_path / "s", [SERVED, leaked])


def test_rows_are_checked_again_when_read(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.parquet"
    write_snapshot(path, [SERVED])
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "split", pa.array(["everything"])), path)
    with pytest.raises(SnapshotInvalid, match="'b': split 'everything'"):
        read_snapshot(path)


def test_a_file_that_is_no_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.parquet"
    with pytest.raises(SnapshotInvalid, match=r"snapshot\.parquet"):
        read_snapshot(path)
    path.write_bytes(b"not Parquet")
    with pytest.raises(SnapshotInvalid, match="not a readable Parquet file"):
        read_snapshot(path)
    pq.write_table(pa.table({"pair_id": ["a"]}), path)
    with pytest.raises(SnapshotInvalid, match="column 'split' is missing"):
        read_snapshot(path)
