"""The snapshot: all preferences of one round, in one Parquet file with one digest.

`service` writes it, `training` reads it, and both compute the digest here. Rows go by in the order of `pair_id`, a few
hundred at a time, so that a million of them take no more memory than a thousand: beyond the row group at hand, 9 bytes
a row. Knows pyarrow and the columns of `SNAPSHOT_COLUMNS`; knows no tokenizer and no torch, so that the service can
import it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.contracts import HELD_OUT, NEW, REPLAY, SNAPSHOT_COLUMNS, TRAIN
from training.errors import SnapshotInvalid
from training.files import whole_file

_TOKEN_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("prompt_token_ids", _TOKEN_IDS),
        pa.field("chosen_token_ids", _TOKEN_IDS),
        pa.field("rejected_token_ids", _TOKEN_IDS),
        pa.field("messages", pa.string()),
        pa.field("chosen_text", pa.string()),
        pa.field("rejected_text", pa.string()),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("voter", pa.string()),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
_LARGEST_TOKEN_ID = 2**31 - 1
_ROWS_AT_ONCE = 512  # a row group: of long conversations of 8,000 tokens some 150 MB while it is written


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A pair, or a single thumb: that has only the chosen answer (thumb up) or only the rejected one (thumb down).

    Prompt and answers are lists of token ids (served traffic), or messages and texts (imported). A served prompt may
    have an answer that nobody sampled, such as a user's correction: that is a text.
    """

    pair_id: str
    split: str
    prompt_token_ids: Sequence[int] | None = None
    chosen_token_ids: Sequence[int] | None = None
    rejected_token_ids: Sequence[int] | None = None
    messages: str | None = None
    chosen_text: str | None = None
    rejected_text: str | None = None
    origin: str = NEW
    voter: str | None = None
    weight: float = 1.0


assert tuple(field.name for field in fields(SnapshotRow)) == SNAPSHOT_COLUMNS == tuple(_SCHEMA.names)


class PairDigest:
    """The sha256 over rows that go by in the order of `pair_id`: one canonical JSON line a row."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, row: SnapshotRow) -> None:
        values = [getattr(row, name) for name in SNAPSHOT_COLUMNS]
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        self._sha256.update(line.encode() + b"\n")

    def hex(self) -> str:
        return self._sha256.hexdigest()


def pair_digest(rows: Iterable[SnapshotRow]) -> str:
    """The `PairDigest` in hex of rows in any order; they are sorted, so all of them are held in memory."""
    digest = PairDigest()
    for row in sorted(rows, key=lambda row: row.pair_id):
        digest.add(row)
    return digest.hex()


def write_snapshot(path: Path, rows: Iterable[SnapshotRow]) -> str:
    """Write the snapshot so that it is there completely or not at all; returns its `pair_digest`.

    A sequence is in memory already and is sorted here. Any other iterable streams, and must come in the order of
    `pair_id`. Raises `SnapshotInvalid` for a row that breaks the contract; nothing is then left at `path`.
    """
    digest = PairDigest()
    ordered = sorted(rows, key=lambda row: row.pair_id) if isinstance(rows, Sequence) else rows
    checked = _checked(ordered)
    with whole_file(path) as partial, pq.ParquetWriter(partial, _SCHEMA) as writer:
        while group := list(islice(checked, _ROWS_AT_ONCE)):
            columns = {name: [getattr(row, name) for row in group] for name in SNAPSHOT_COLUMNS}
            writer.write_table(pa.table(columns, schema=_SCHEMA))
            for row in group:
                digest.add(row)
    return digest.hex()


def iterate(path: Path) -> Iterator[SnapshotRow]:
    """All rows in the order of `pair_id`, read one row group at a time and checked as they were when written.

    Raises `SnapshotInvalid` naming the file, or the row and what is wrong with it; that a prompt is in both splits
    is known, and raised, only after the last row.
    """
    return _checked(_rows(path))


def _rows(path: Path) -> Iterator[SnapshotRow]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _require_columns(path, file.schema_arrow)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(SNAPSHOT_COLUMNS)):
                columns = [_values(batch.column(name)) for name in SNAPSHOT_COLUMNS]
                yield from (SnapshotRow(*values) for values in zip(*columns, strict=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise SnapshotInvalid(f"{path}: not a readable Parquet file ({error})") from error


def _require_columns(path: Path, found: pa.Schema) -> None:
    for field in _SCHEMA:
        if field.name not in found.names:
            raise SnapshotInvalid(f"{path}: column {field.name!r} is missing")
        if found.field(field.name).type != field.type:
            raise SnapshotInvalid(f"{path}: column {field.name!r} is {found.field(field.name).type}, not {field.type}")


def _values(column: pa.Array) -> Iterable[object]:
    """The column's Python values. Token ids become lists only when their row's turn comes, through numpy: quicker."""
    if not isinstance(column, pa.ListArray) or column.values.null_count:  # a null token id is for `_fault` to name
        return column.to_pylist()
    token_ids, ends = column.values.to_numpy(), column.offsets.to_numpy()
    present = column.is_valid().to_pylist()
    return (token_ids[ends[i] : ends[i + 1]].tolist() if present[i] else None for i in range(len(column)))


def _checked(rows: Iterable[SnapshotRow]) -> Iterator[SnapshotRow]:
    """The same rows. Raises `SnapshotInvalid` at the first that is at fault, alone or beside those before it."""
    splits = _Splits()
    previous = ""  # no pair_id is empty, and each is greater than the one before: so it is also unique
    for number, row in enumerate(rows, start=1):
        reason = _fault(row)
        if reason is None and row.pair_id <= previous:
            twice = "the pair_id occurs twice"
            reason = twice if row.pair_id == previous else f"comes after {previous!r}; sort the rows by pair_id"
        if reason:
            raise SnapshotInvalid(f"row {number}, {row.pair_id!r}: {reason}")
        previous = row.pair_id
        splits.add(row)
        yield row
    splits.check()


class _Splits:
    """Whether a prompt is in both splits; 9 bytes a row. Of a million prompts two share a hash once in 30 million."""

    def __init__(self) -> None:
        self._prompts = array("Q")  # 64-bit hashes
        self._held_out = bytearray()  # 0 or 1

    def add(self, row: SnapshotRow) -> None:
        if row.prompt_token_ids is not None:
            content = b"t" + np.asarray(row.prompt_token_ids, dtype=np.int32).tobytes()
        else:
            content = b"m" + str(row.messages).encode()
        self._prompts.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()))
        self._held_out.append(row.split == HELD_OUT)

    def check(self) -> None:
        prompts = np.frombuffer(self._prompts, dtype=np.uint64)  # [rows]
        held_out = np.frombuffer(self._held_out, dtype=bool)  # [rows]
        leaked = np.flatnonzero(held_out)[np.isin(prompts[held_out], prompts[~held_out])]
        if len(leaked):
            same = np.flatnonzero((prompts == prompts[leaked[0]]) & ~held_out)
            raise SnapshotInvalid(
                f"row {leaked[0] + 1}: its prompt is in both splits (in {TRAIN!r} by row {same[0] + 1}), "
                "so the held-out pairs would not be held out"
            )


def _fault(row: SnapshotRow) -> str | None:
    """What is wrong with the row on its own; None when nothing is."""
    if not row.pair_id:
        return "pair_id is empty"
    if row.split not in (TRAIN, HELD_OUT):
        return f"split {row.split!r} is neither {TRAIN!r} nor {HELD_OUT!r}"
    if row.origin not in (NEW, REPLAY):
        return f"origin {row.origin!r} is neither {NEW!r} nor {REPLAY!r}"
    if row.voter == "":
        return "voter is empty; null says that nobody knows"
    if not (isinstance(row.weight, float) and 0 < row.weight <= 1):
        return f"weight {row.weight!r} is no float above 0 and at most 1"
    if (row.prompt_token_ids is None) == (row.messages is None):
        return "give either prompt_token_ids or messages, and not both"
    return _prompt_fault(row) or _answers_fault(row)


def _prompt_fault(row: SnapshotRow) -> str | None:
    if row.messages is None:
        return _token_fault("prompt_token_ids", row.prompt_token_ids)
    if row.chosen_token_ids is not None or row.rejected_token_ids is not None:
        return "answers to messages are texts: give prompt_token_ids with token ids of answers"
    return _messages_fault(row.messages)


def _answers_fault(row: SnapshotRow) -> str | None:
    chosen, rejected = (row.chosen_token_ids, row.chosen_text), (row.rejected_token_ids, row.rejected_text)
    if chosen == rejected == (None, None):
        return "it has neither a chosen nor a rejected answer"
    for name, (token_ids, text) in (("chosen", chosen), ("rejected", rejected)):
        if token_ids is not None and text is not None:
            return f"{name}_token_ids and {name}_text are both given; keep the one that is trained on"
        if text == "":
            return f"{name}_text is empty"
        if fault := _token_fault(f"{name}_token_ids", token_ids):
            return fault
    return "chosen and rejected are the same" if chosen == rejected else None


def _token_fault(name: str, token_ids: Sequence[int] | None) -> str | None:
    if token_ids is None:
        return None
    if not len(token_ids):
        return f"{name} is empty"
    numbers = np.asarray(token_ids)
    if numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() > _LARGEST_TOKEN_ID:
        return f"{name} holds something that is no token id"
    return None


def _messages_fault(text: str) -> str | None:
    try:
        messages = json.loads(text)
    except ValueError:
        return "messages is not JSON"
    if not isinstance(messages, list) or not messages:
        return "messages is not a non-empty list"
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            return "a message lacks its role or its content"
    return None
