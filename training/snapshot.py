"""The snapshot: all preference pairs of one round, in one Parquet file with one digest.

`service` writes it, `training` reads it, and both compute the digest here. Knows pyarrow and the columns of
`SNAPSHOT_COLUMNS`; knows no tokenizer and no torch, so that the service can import it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.contracts import HELD_OUT, NEW, SNAPSHOT_COLUMNS, TRAIN
from training.errors import SnapshotInvalid
from training.files import write_file

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
    ]
)
_LARGEST_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One pair: either three lists of token ids (served traffic) or messages and two texts (imported)."""

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


assert tuple(field.name for field in fields(SnapshotRow)) == SNAPSHOT_COLUMNS == tuple(_SCHEMA.names)


def pair_digest(rows: Iterable[SnapshotRow]) -> str:
    """The sha256 hex digest of the pairs, whatever their order: one canonical JSON line a pair, by `pair_id`."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.pair_id):
        values = [getattr(row, name) for name in SNAPSHOT_COLUMNS]
        line = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def write_snapshot(path: Path, rows: Iterable[SnapshotRow]) -> str:
    """Write the snapshot so that it is there completely or not at all; returns its `pair_digest`.

    Raises `SnapshotInvalid` for a row that breaks the contract, before anything is written.
    """
    ordered = sorted(rows, key=lambda row: row.pair_id)
    _check(ordered)
    table = pa.table({name: [getattr(row, name) for row in ordered] for name in SNAPSHOT_COLUMNS}, schema=_SCHEMA)
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    write_file(path, content.getvalue().to_pybytes())
    return pair_digest(ordered)


def read_snapshot(path: Path) -> list[SnapshotRow]:
    """All rows, by `pair_id`. Raises `SnapshotInvalid` naming the file, or the row and what is wrong with it."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SnapshotInvalid(f"{path}: not a readable Parquet file ({error})") from error
    missing = [name for name in SNAPSHOT_COLUMNS if name not in table.column_names]
    if missing:
        raise SnapshotInvalid(f"{path}: column {missing[0]!r} is missing")
    rows = sorted((_row(values) for values in table.to_pylist()), key=lambda row: row.pair_id)
    _check(rows)
    return rows


def _row(values: dict[str, object]) -> SnapshotRow:
    return SnapshotRow(**{name: values[name] for name in SNAPSHOT_COLUMNS})  # pyright: ignore[reportArgumentType]


def _check(rows: Sequence[SnapshotRow]) -> None:
    split_of_prompt: dict[object, str] = {}
    seen: set[str] = set()
    for row in rows:
        reason = _fault(row)
        if row.pair_id in seen:
            reason = "the pair_id occurs twice"
        prompt = row.messages if row.prompt_token_ids is None else tuple(row.prompt_token_ids)
        if split_of_prompt.setdefault(prompt, row.split) != row.split:
            reason = "its prompt is in both splits, so the held-out pairs would not be held out"
        if reason:
            raise SnapshotInvalid(f"pair {row.pair_id!r}: {reason}")
        seen.add(row.pair_id)


def _fault(row: SnapshotRow) -> str | None:
    """What is wrong with the row on its own; None when nothing is."""
    token_ids = (row.prompt_token_ids, row.chosen_token_ids, row.rejected_token_ids)
    texts = (row.messages, row.chosen_text, row.rejected_text)
    if not row.pair_id:
        return "pair_id is empty"
    if row.split not in (TRAIN, HELD_OUT):
        return f"split {row.split!r} is neither {TRAIN!r} nor {HELD_OUT!r}"
    if all(ids is not None for ids in token_ids) and texts == (None, None, None):
        return _token_fault(token_ids)
    if all(text is not None for text in texts) and token_ids == (None, None, None):
        return _text_fault(row)
    return "give either prompt, chosen and rejected token ids, or messages, chosen_text and rejected_text"


def _token_fault(token_ids: Sequence[Sequence[int] | None]) -> str | None:
    for name, ids in zip(("prompt", "chosen", "rejected"), token_ids, strict=True):
        if not ids:
            return f"{name}_token_ids is empty"
        if not all(isinstance(i, int) and 0 <= i <= _LARGEST_TOKEN_ID for i in ids):
            return f"{name}_token_ids holds something that is no token id"
    _, chosen, rejected = token_ids
    return "chosen and rejected are the same tokens" if chosen == rejected else None


def _text_fault(row: SnapshotRow) -> str | None:
    assert row.messages is not None
    try:
        messages = json.loads(row.messages)
    except ValueError:
        return "messages is not JSON"
    if not isinstance(messages, list) or not messages:
        return "messages is not a non-empty list"
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            return "a message lacks its role or its content"
    if not row.chosen_text or not row.rejected_text:
        return "an answer is empty"
    return "chosen and rejected are the same text" if row.chosen_text == row.rejected_text else None
