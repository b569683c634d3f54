"""A file of preferences, read row by row: JSON lines or Parquet, each row a preference or the reason why it is none.

The file may be larger than memory, and compressed by gzip. Knows nothing of what is done with the rows; what the fields
of one mean is for `formats/` to say.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import TrainingError
from training.formats import KNOWN_FIELDS, SHAPES, Format, Preference, Recognised, RowError, json_object, recognise

FIRST_ROWS = 32  # the format of a file is that of most of these
MAX_LINE_BYTES = 16 << 20  # a line is held in memory as a whole

_PARQUET_MAGIC, _GZIP_MAGIC = b"PAR1", b"\x1f\x8b"
_ROWS_AT_ONCE = 512
_SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row gives nothing."""

    row: int
    field: str | None  # such as "chosen" or "prompt.0.role"; None: the whole row
    reason: str


def read(
    source: Path | BinaryIO,
    format: Format | None = None,
    on_format: Callable[[Recognised], None] | None = None,
    *,
    name: str | None = None,
) -> Generator[Preference | Fault]:
    """Every row of the file, in order; blank lines give nothing. With a `format`, rows of no other.

    An open file is buffered, and stands at its beginning. `on_format` hears of the file's format before the first row,
    if it has rows at all; `name` is what messages call the file. Raises `TrainingError` when the file as a whole cannot
    be read.
    """
    with closing(_rows(source, name or str(source))) as rows:
        first = list(islice(rows, FIRST_ROWS))
        recognised = recognise([row for _, row in first if not isinstance(row, Fault)], format)
        if on_format is not None and recognised.of:
            on_format(recognised)
        for number, row in chain(first, rows):
            yield row if isinstance(row, Fault) else _preference(recognised, number, row)


def _preference(recognised: Recognised, number: int, fields: dict[str, Any]) -> Preference | Fault:
    try:
        return recognised.preference(number, fields)
    except RowError as error:
        return Fault(number, error.field, error.reason)


def _rows(source: Path | BinaryIO, name: str) -> Generator[tuple[int, dict[str, Any] | Fault]]:
    """Number and fields of each row that is not blank."""
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            beginning = cast(io.BufferedReader, file).peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES]
            if beginning.startswith(_PARQUET_MAGIC):
                yield from enumerate(_parquet_rows(file, name), start=1)
            elif beginning.startswith(_GZIP_MAGIC):
                with io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file))) as unpacked:
                    yield from _lines(unpacked, unpacked.peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES], name)
            else:
                yield from _lines(file, beginning, name)
    except IsADirectoryError:
        raise TrainingError(f"{name} is a directory: name one file of JSON lines or Parquet") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise TrainingError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _lines(file: BinaryIO, beginning: bytes, name: str) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    _require_lines(name, beginning)
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        try:
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                raise RowError(None, f"longer than {MAX_LINE_BYTES >> 20} MiB; a line is one preference")
            fields = json_object(line)
        except RowError as error:
            yield number, Fault(number, error.field, error.reason)
        else:
            if fields is not None:
                yield number, fields


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def _require_lines(name: str, beginning: bytes) -> None:
    """A message for what is no lines at all, instead of one for each of its lines."""
    first = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"[":
        raise TrainingError(f"{name} is one JSON array: write an object a line, such as with `jq -c '.[]'`")
    if first not in (b"", b"{"):
        raise TrainingError(
            f"{name} is neither Parquet nor JSON lines: its first line does not begin with '{{'. "
            f"A line is a JSON object, such as {SHAPES['trl']}"
        )


def _parquet_rows(opened: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """By row groups and pages; a column that says nothing here is named, and stays on the disk."""
    with pq.ParquetFile(opened, pre_buffer=False) as file:
        names = file.schema_arrow.names
        columns = [column for column in names if column in KNOWN_FIELDS]
        if not columns:
            raise TrainingError(
                f"{name} has the columns {', '.join(names)}, which no known format has: name them as TRL does, "
                f"{SHAPES['trl']}"
            )
        unread = dict.fromkeys(column for column in names if column not in columns)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from (row | unread for row in batch.to_pylist())
