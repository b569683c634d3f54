"""A file of preferences on its way into the store: spooled while it arrives, read as a stream, kept whole or not at all.

Knows neither HTTP nor formats: the bytes come from somewhere, and `training/reading.py` reads them.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict

from service.digest import content_digest
from service.errors import BadRequest, Unavailable
from service.keeping.redaction import Redactor
from service.pairs import ImportedPair
from service.store.imports import Imports
from training.errors import TrainingError
from training.formats import Format, Preference, Recognised
from training.reading import Fault, read

Value = TypeVar("Value")

BATCH_ROWS = 500
FAULTS_SHOWN = 100
FILE = "The file"  # what messages call it


class RowFault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int  # from 1; of JSON lines the line
    field: str | None  # such as "chosen" or "prompt.0.role"; None: the whole row
    reason: str


class Outcome(BaseModel):
    """What came of a file. rows = added + known + faults_total."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format | None  # None: no row is in a known one
    detected: str  # the same, with how many of the first rows say so
    rows: int
    added: int
    known: int  # were there already, or are twice in the file
    faults: tuple[RowFault, ...]  # the first
    faults_total: int
    ignored: tuple[str, ...]  # fields that say nothing here
    dry_run: bool
    refused: bool  # it has faults that were not to be skipped: nothing of it was kept


@dataclass
class _Tally:
    """What has been read so far."""

    redact: Redactor
    recognised: Recognised | None = None
    rows: int = 0
    added: int = 0
    faults: list[RowFault] = field(default_factory=list)
    faults_total: int = 0
    ignored: set[str] = field(default_factory=set)

    def recognise(self, found: Recognised) -> None:
        self.recognised = found

    def pairs(self, rows: Iterable[Preference | Fault]) -> list[ImportedPair]:
        """The good ones; the bad ones are counted."""
        pairs = []
        for row in rows:
            self.rows += 1
            kept = row if isinstance(row, Fault) else redacted(row, self.redact)
            if isinstance(kept, Preference):
                self.ignored.update(kept.ignored)
                pairs.append(imported_pair(kept))
                continue
            self.faults_total += 1
            if len(self.faults) < FAULTS_SHOWN:
                self.faults.append(RowFault(row=kept.row, field=kept.field, reason=kept.reason))
        return pairs

    def outcome(self, *, dry_run: bool, refused: bool) -> Outcome:
        return Outcome(
            format=self.recognised.format if self.recognised else None,
            detected=str(self.recognised or "no row that could be read"),
            rows=self.rows,
            added=0 if refused else self.added,
            known=0 if refused else self.rows - self.faults_total - self.added,
            faults=tuple(self.faults),
            faults_total=self.faults_total,
            ignored=tuple(sorted(self.ignored)),
            dry_run=dry_run,
            refused=refused,
        )


def redacted(preference: Preference, redact: Redactor) -> Preference | Fault:
    """With what may be kept of its texts; a fault, when that is the same of both answers. Raises `RedactionFailed`."""
    messages = [message | {"content": redact.text(message["content"])} for message in preference.messages]
    answers = (preference.chosen, preference.rejected)
    chosen, rejected = (None if answer is None else redact.text(answer) for answer in answers)
    if chosen == rejected:
        return Fault(preference.row, "rejected", "the same as chosen, once both are redacted")
    return replace(preference, messages=messages, chosen=chosen, rejected=rejected)


def imported_pair(preference: Preference) -> ImportedPair:
    """Its id is that of its content, whichever format said it."""
    content = {"messages": preference.messages, "chosen": preference.chosen, "rejected": preference.rejected}
    return ImportedPair(
        id=content_digest(content),
        messages=tuple(preference.messages),
        chosen=preference.chosen,
        rejected=preference.rejected,
        format=preference.format,
    )


@asynccontextmanager
async def spooled(pieces: AsyncIterator[bytes], folder: Path) -> AsyncIterator[BinaryIO]:
    """What arrives, as a file that stands at its beginning. It has no name, so nothing is left however this ends.

    Raises `Unavailable` when it cannot be written, as on a full disk.
    """
    file = await _on_disk(lambda: _nameless(folder))
    try:
        async for piece in pieces:
            await _on_disk(lambda piece=piece: file.write(piece))
        await _on_disk(lambda: file.seek(0))
        yield file
    finally:
        _close(file)


async def take_in(
    file: BinaryIO,
    imports: Imports,
    *,
    who: str,
    format: Format | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Keeps the preferences of the file, all in one transaction. `dry_run`: says what that would do, and keeps none.

    Raises `BadRequest` when it is no file of preferences, `Unavailable` when the store does not answer; nothing of it
    is kept then.
    """
    tally = _Tally(imports.redact)
    rows = read(file, format, tally.recognise, name=FILE)
    async with imports.begin() as going_in:
        while (pairs := await _batch(rows, tally)) is not None:
            if pairs and (skip_bad or not tally.faults_total):
                tally.added += await going_in.add(pairs)
        if not tally.rows:
            raise BadRequest(f"{FILE} holds no preferences.", code="no_rows")
        refused = tally.faults_total > 0 and not skip_bad
        outcome = tally.outcome(dry_run=dry_run, refused=refused)
        if dry_run or refused:
            await going_in.undo()
        else:
            detail = {"added": outcome.added, "skipped": outcome.faults_total, "format": outcome.format}
            await going_in.audit(who=who, detail=detail)
    return outcome


async def _batch(rows: Iterator[Preference | Fault], tally: _Tally) -> Sequence[ImportedPair] | None:
    """The next rows, read and digested in another thread. None: there are no more."""

    def work() -> Sequence[ImportedPair] | None:
        batch = list(islice(rows, BATCH_ROWS))
        return tally.pairs(batch) if batch else None

    try:
        return await asyncio.to_thread(work)
    except TrainingError as error:
        raise BadRequest(f"{error}.", code="unreadable_file") from error


async def _on_disk(work: Callable[[], Value]) -> Value:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise Unavailable(
            f"The upload cannot be kept while it arrives ({error.strerror or error}). Make room in the state folder.",
            code="storage_unavailable",
        ) from error


def _nameless(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _close(file: BinaryIO) -> None:
    """Closing writes what is still buffered, and fails again on a full disk; it is closed all the same."""
    try:
        file.close()
    except OSError:
        assert file.closed
