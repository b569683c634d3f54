"""A file of preferences on its way to a snapshot: read row by row, split and counted, with the reason for each bad row.

The file may be larger than memory. Knows JSON lines and Parquet; what the fields of a row mean is for `formats.py`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.contracts import HELD_OUT, TRAIN
from training.errors import TrainingError
from training.formats import (
    CHANGE_THE_PROMPT,
    FIELDS,
    SHAPES,
    Format,
    Preference,
    RowError,
    all_shapes,
    json_object,
    preference,
)
from training.objective import parse
from training.snapshot import SnapshotRow

_PARQUET_MAGIC = b"PAR1"
_ROWS_AT_ONCE = 512
_SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row gives nothing."""

    row: int
    field: str | None  # such as "chosen" or "prompt.0.role"; None: the whole row
    reason: str


def read(path: Path, format: Format | None = None) -> Iterator[Preference | Fault]:
    """Every row of a file of JSON lines or of Parquet, in order; blank lines give nothing. With a `format`, no other.

    Raises `TrainingError` when the file as a whole cannot be read.
    """
    for number, row in _rows(path):
        try:
            fields = row if isinstance(row, dict) else json_object(row)
            if fields is not None:
                yield preference(number, fields, format)
        except RowError as error:
            yield Fault(number, error.field, error.reason)


@dataclass
class Intake:
    """Preferences on their way from a file to the snapshot: gives each its split, and counts what goes by.

    A prompt's hash alone says whether it is held out, so the same prompt is so in every file and every round. In memory
    stay 8 bytes a row.
    """

    held_out_share: float
    skip_bad: bool
    on_fault: Callable[[Fault], None]
    formats: Counter[Format] = field(default_factory=Counter)
    splits: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (split, whether it is a pair) -> rows
    faults: int = 0
    ignored: set[str] = field(default_factory=set)  # fields that say nothing here
    _numbers: array[int] = field(default_factory=lambda: array("q"))  # [rows of the snapshot], each one's in the file

    def rows(self, found: Iterable[Preference | Fault]) -> Iterator[SnapshotRow]:
        """The rows of a snapshot. After the last, raises `TrainingError` when one was bad, or there was none."""
        for item in found:
            if isinstance(item, Fault):
                self.faults += 1
                self.on_fault(item)
            else:
                yield self._row(item)
        if self.faults and not self.skip_bad:
            raise TrainingError(
                f"{self.faults} of {self.faults + len(self)} rows are bad, so nothing is trained: "
                "mend them, or leave them out with --skip-bad"
            )
        if not len(self):
            raise TrainingError("there are no preferences in the file")

    def require_enough(self, objective: str) -> None:
        """Raises `TrainingError` when nothing of this is to be trained on, with what to do about it."""
        if not parse(objective).unpaired and not any(is_pair for _, is_pair in self.splits):
            raise TrainingError(f"all rows are single thumbs, and {objective!r} learns from pairs: use --objective kto")
        if not self.n_train:
            raise TrainingError(f"all {len(self)} rows would be held out: lower --held-out, or set it to 0")

    def number_in_file(self, row: int) -> int:
        """Of a row of the snapshot, from 1: what a person finds it by."""
        return self._numbers[row - 1]

    @property
    def n_train(self) -> int:
        return sum(count for (split, _), count in self.splits.items() if split == TRAIN)

    @property
    def n_held_out(self) -> int:
        return len(self) - self.n_train

    def __len__(self) -> int:
        return len(self._numbers)

    def _row(self, preference: Preference) -> SnapshotRow:
        messages = json.dumps(preference.messages, ensure_ascii=False)
        split = HELD_OUT if _share(messages) < self.held_out_share else TRAIN
        answers = json.dumps([preference.chosen, preference.rejected], ensure_ascii=False)
        content = hashlib.sha256(f"{messages}\n{answers}".encode()).hexdigest()
        self.formats[preference.format] += 1
        self.splits[split, preference.chosen is not None and preference.rejected is not None] += 1
        self.ignored.update(preference.ignored)
        self._numbers.append(preference.row)
        return SnapshotRow(
            f"{preference.row:012d}-{content[:16]}",  # in the order of the file, which a stream cannot change
            split,
            messages=messages,
            chosen_text=preference.chosen,
            rejected_text=preference.rejected,
        )


def _rows(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Number and content of each row: a line, or the fields of a row of Parquet."""
    try:
        with path.open("rb") as file:
            beginning = file.peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES]
            if not beginning.startswith(_PARQUET_MAGIC):
                _require_lines(path, beginning)
                yield from enumerate(file, start=1)
                return
        yield from enumerate(_parquet_rows(path), start=1)
    except IsADirectoryError:
        raise TrainingError(f"{path} is a directory: name one file of JSON lines or Parquet") from None
    except (OSError, pa.ArrowException) as error:
        raise TrainingError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _require_lines(path: Path, beginning: bytes) -> None:
    """Not only for a better message: what is one line of a gigabyte would be read at once."""
    first = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        raise TrainingError(f"{path} is one JSON array: write an object a line, such as with `jq -c '.[]' {path}`")
    if first not in (b"", b"{"):
        raise TrainingError(
            f"{path} is neither Parquet nor JSON lines: its first line does not begin with '{{'. "
            f"A line is a JSON object, such as {SHAPES['standard']}"
        )


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """By row groups and pages; a column that says nothing here is named, and stays on the disk."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        unread = dict.fromkeys(name for name in names if name not in (*FIELDS, *CHANGE_THE_PROMPT))
        columns = [name for name in names if name not in unread]
        if not columns:
            raise TrainingError(f"{path} has the columns {', '.join(names)}: name them as TRL does, {all_shapes()}")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from (row | unread for row in batch.to_pylist())


def _share(text: str) -> float:
    """A hash from 0 to 1."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
