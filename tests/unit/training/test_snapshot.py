"""The snapshot: what is written is what is read, its digest is of its content, and bad rows are named."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.contracts import HELD_OUT, NEW, REPLAY, TRAIN
from training.errors import SnapshotInvalid
from training.snapshot import PairDigest, SnapshotRow, iterate, pair_digest, write_snapshot

SERVED = SnapshotRow("b", TRAIN, (1, 2), (3, 4), (5,))
IMPORTED = SnapshotRow(
    "a", HELD_OUT, messages='[{"role":"user","content":"Hi ☀"}]', chosen_text="Hello", rejected_text="No"
)
THUMB = SnapshotRow("c", TRAIN, (1, 2), rejected_token_ids=(7,), origin=REPLAY, voter="v", weight=0.3)
CORRECTED = SnapshotRow("d", TRAIN, (1, 2, 3), rejected_token_ids=(7,), chosen_text="Rather this")
ROWS = [SERVED, IMPORTED, CORRECTED, THUMB]


def as_read(row: SnapshotRow) -> SnapshotRow:
    """Parquet gives lists back, never tuples."""
    ids = {n: list(v) for n in ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids") if (v := getattr(row, n))}
    return replace(row, **ids)


def test_written_rows_are_read_back_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "snapshot.parquet"
    digest = write_snapshot(path, ROWS)
    assert list(iterate(path)) == [as_read(row) for row in (IMPORTED, SERVED, THUMB, CORRECTED)]
    assert digest == pair_digest(iterate(path)) == pair_digest(ROWS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_snapshot_may_be_empty(tmp_path: Path) -> None:
    digest = write_snapshot(tmp_path / "s", [])
    assert list(iterate(tmp_path / "s")) == []
    assert digest == pair_digest([])


token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
sides = st.sampled_from([(True, True), (True, False), (False, True)])


@st.composite
def snapshot_rows(draw: st.DrawFn) -> list[SnapshotRow]:
    """Pairs and thumbs, served and imported, corrected or not, each with a prompt of its own."""
    rows = []
    for n, pair_id in enumerate(draw(st.lists(texts, unique=True, max_size=6))):
        common = {
            "split": draw(st.sampled_from([TRAIN, HELD_OUT])),
            "origin": draw(st.sampled_from([NEW, REPLAY])),
            "voter": draw(st.none() | texts),
            "weight": draw(st.floats(0, 1, exclude_min=True)),
        }
        up, down = draw(sides)
        if draw(st.booleans()):
            chosen, rejected = draw(st.tuples(token_ids, token_ids).filter(lambda both: both[0] != both[1]))
            correction = draw(st.none() | texts)
            row = SnapshotRow(
                pair_id,
                prompt_token_ids=[n, *draw(token_ids)],
                chosen_token_ids=chosen if up and correction is None else None,
                rejected_token_ids=rejected if down else None,
                chosen_text=correction if up else None,
                **common,
            )
        else:
            good, bad = draw(st.tuples(texts, texts).filter(lambda both: both[0] != both[1]))
            messages = json.dumps([{"role": "user", "content": f"{n} {draw(texts)}"}])
            row = SnapshotRow(
                pair_id,
                messages=messages,
                chosen_text=good if up else None,
                rejected_text=bad if down else None,
                **common,
            )
        rows.append(row)
    return rows


@given(snapshot_rows())
def test_whatever_a_row_holds_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[SnapshotRow]) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    digest = write_snapshot(path, rows)
    assert list(iterate(path)) == sorted(rows, key=lambda row: row.pair_id)
    assert digest == pair_digest(rows)


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
        replace(SERVED, rejected_token_ids=None),
        replace(SERVED, chosen_token_ids=None),
        replace(SERVED, origin=REPLAY),
        replace(SERVED, voter="v"),
        replace(SERVED, weight=0.5),
        replace(SERVED, chosen_token_ids=None, chosen_text="x"),
        replace(SERVED, rejected_token_ids=None, rejected_text="x"),
    ],
)
def test_the_digest_depends_on_every_value(changed: SnapshotRow) -> None:
    assert pair_digest([changed]) != pair_digest([SERVED])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (replace(SERVED, pair_id=""), "pair_id is empty"),
        (replace(SERVED, split="test"), "split 'test'"),
        (replace(SERVED, origin="old"), "origin 'old' is neither 'new' nor 'replay'"),
        (replace(SERVED, voter=""), "voter is empty"),
        (replace(SERVED, weight=0.0), "weight 0.0 is no float above 0 and at most 1"),
        (replace(SERVED, weight=1.5), "weight 1.5 is"),
        (replace(SERVED, weight=math.nan), "weight nan is"),
        (replace(SERVED, weight=1), "weight 1 is"),  # another digest than that of the 1.0 which is read back
        (replace(SERVED, prompt_token_ids=None), "give either prompt_token_ids or messages"),
        (replace(SERVED, messages="[]"), "give either prompt_token_ids or messages, and not both"),
        (replace(SERVED, chosen_text="x"), "chosen_token_ids and chosen_text are both given"),
        (replace(SERVED, rejected_text="x"), "rejected_token_ids and rejected_text are both given"),
        (replace(CORRECTED, chosen_text=""), "chosen_text is empty"),
        (replace(CORRECTED, rejected_text="Rather this", rejected_token_ids=None), "the same"),
        (replace(IMPORTED, chosen_token_ids=(1,)), "answers to messages are texts"),
        (replace(IMPORTED, chosen_text=None, chosen_token_ids=(1,)), "answers to messages are texts"),
        (replace(SERVED, chosen_token_ids=None, rejected_token_ids=None), "neither a chosen nor a rejected answer"),
        (replace(SERVED, prompt_token_ids=()), "prompt_token_ids is empty"),
        (replace(THUMB, rejected_token_ids=()), "rejected_token_ids is empty"),
        (replace(SERVED, rejected_token_ids=(-1,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(2**31,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(2**70,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(1.5,)), "no token id"),
        (replace(SERVED, rejected_token_ids=(3, 4)), "chosen and rejected are the same"),
        (replace(IMPORTED, messages="{"), "not JSON"),
        (replace(IMPORTED, messages="[]"), "non-empty list"),
        (replace(IMPORTED, messages='[{"role": "user"}]'), "lacks its role or its content"),
        (replace(IMPORTED, chosen_text=None, rejected_text=None), "neither a chosen nor a rejected answer"),
        (replace(IMPORTED, chosen_text=""), "chosen_text is empty"),
        (replace(IMPORTED, chosen_text="No"), "chosen and rejected are the same"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_nothing_is_left(row: SnapshotRow, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match=reason) as refusal:
        write_snapshot(tmp_path / "snapshot.parquet", [row])
    assert str(refusal.value).startswith(f"row 1, {row.pair_id!r}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_row_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_snapshot(path, [SERVED])
    with pytest.raises(SnapshotInvalid, match="row 700, "):
        write_snapshot(path, many(699, then=replace(SERVED, pair_id="z", split="test")))
    assert list(iterate(path)) == [as_read(SERVED)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_a_pair_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match="row 2, 'b': the pair_id occurs twice"):
        write_snapshot(tmp_path / "s", [SERVED, SERVED])


def test_a_stream_out_of_order_is_refused_since_it_cannot_be_sorted(tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match="row 2, 'a': comes after 'b'; sort the rows by pair_id"):
        write_snapshot(tmp_path / "s", iter([SERVED, IMPORTED]))


def test_a_prompt_in_both_splits_is_refused(tmp_path: Path) -> None:
    leaked = replace(SERVED, pair_id="d", split=HELD_OUT, chosen_token_ids=(9,))
    with pytest.raises(SnapshotInvalid, match=r"row 3: its prompt is in both splits \(in 'train' by row 2\)"):
        write_snapshot(tmp_path / "s", [IMPORTED, SERVED, leaked])
    leaked = replace(IMPORTED, pair_id="d", split=TRAIN, chosen_text="Good day")
    with pytest.raises(SnapshotInvalid, match=r"row 1: its prompt is in both splits \(in 'train' by row 3\)"):
        write_snapshot(tmp_path / "s", [IMPORTED, SERVED, leaked])


def test_rows_are_checked_again_when_read(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.parquet"
    write_snapshot(path, [SERVED])
    good = pq.read_table(path)
    pq.write_table(good.set_column(1, "split", pa.array(["everything"])), path)
    with pytest.raises(SnapshotInvalid, match="row 1, 'b': split 'everything'"):
        list(iterate(path))
    pq.write_table(good.set_column(3, "chosen_token_ids", pa.array([[1, None]], pa.list_(pa.int32()))), path)
    with pytest.raises(SnapshotInvalid, match="row 1, 'b': chosen_token_ids holds something that is no token id"):
        list(iterate(path))
    pq.write_table(pa.concat_tables([good, good]), path)
    with pytest.raises(SnapshotInvalid, match="row 2, 'b': the pair_id occurs twice"):
        list(iterate(path))


def test_a_file_that_is_no_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.parquet"
    with pytest.raises(SnapshotInvalid, match=r"snapshot\.parquet"):
        list(iterate(path))
    path.write_bytes(b"not Parquet")
    with pytest.raises(SnapshotInvalid, match="not a readable Parquet file"):
        list(iterate(path))
    pq.write_table(pa.table({"pair_id": ["a"]}), path)
    with pytest.raises(SnapshotInvalid, match="column 'split' is missing"):
        list(iterate(path))
    pq.write_table(pa.table({"pair_id": [1]}), path)
    with pytest.raises(SnapshotInvalid, match="column 'pair_id' is int64, not string"):
        list(iterate(path))


def many(count: int, then: SnapshotRow | None = None) -> Iterator[SnapshotRow]:
    """A stream of rows of 100 tokens."""
    for i in range(count):
        tokens = [(i * 31 + k) % 30_000 for k in range(100)]
        yield SnapshotRow(f"{i:08d}", TRAIN, [i, *tokens[:49]], tokens[50:75], tokens[75:])
    if then is not None:
        yield then


def test_many_rows_stream_through_a_file_in_row_groups(tmp_path: Path) -> None:
    path, digest = tmp_path / "s", PairDigest()
    written = write_snapshot(path, many(20_000))
    for row, expected in zip(iterate(path), many(20_000), strict=True):
        assert row == expected
        digest.add(row)
    assert written == digest.hex()
    assert pq.ParquetFile(path).num_row_groups > 10


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    def peak_bytes(rows: int) -> int:
        tracemalloc.start()
        try:
            write_snapshot(tmp_path / "s", many(rows))
            for _ in iterate(tmp_path / "s"):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(2000) - peak_bytes(1000) < 1000 * 200  # as Python numbers each row takes thousands of bytes
