"""Imports and exports as the fake API answers them: formats and shapes are the real ones, and nothing is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from email.message import Message
from io import BufferedIOBase
from typing import Any, cast

from service.api.exchange import answer
from service.exchange.exports import Exportable, ExportFormat, lines_of
from service.exchange.imports import FAULTS_SHOWN, Outcome, RowFault
from training.formats import Format, Recognised
from training.reading import Fault, read


def body(headers: Message, incoming: BufferedIOBase) -> bytes:
    """Of a request: as long as it says, or in chunks, as a pipe is sent."""
    if headers.get("transfer-encoding") != "chunked":
        return incoming.read(int(headers.get("content-length", 0)))
    parts = []
    while size := int(incoming.readline(), 16):
        parts.append(incoming.read(size))
        incoming.readline()
    incoming.readline()
    return b"".join(parts)


def imported(body: bytes, query: dict[str, str]) -> tuple[int, Any]:
    """Status and JSON; every good row is new."""
    told: list[Recognised] = []
    format = cast("Format | None", query.get("format"))
    rows = list(read(io.BufferedReader(io.BytesIO(body)), format, told.append))
    faults = [RowFault(row=row.row, field=row.field, reason=row.reason) for row in rows if isinstance(row, Fault)]
    refused = bool(faults) and query.get("skip_bad") != "true"
    outcome = Outcome(
        format=told[0].format if told else None,
        detected=str(told[0]) if told else "none",
        rows=len(rows),
        added=0 if refused else len(rows) - len(faults),
        known=0,
        faults=tuple(faults[:FAULTS_SHOWN]),
        faults_total=len(faults),
        ignored=(),
        dry_run=query.get("dry_run") == "true",
        refused=refused,
    )
    said, status = answer(outcome)
    return status, said


def exported(stored: Sequence[Exportable], query: dict[str, str]) -> list[bytes]:
    """The lines of an export; its summary speaks of one pair and two votes that are not in it."""
    lines = [line for pair in stored for line in lines_of(pair, cast("ExportFormat", query["format"]))]
    summary = {
        "pairs": len(stored),
        "thumbs": 0,
        "lines": len(lines),
        "not_stored": 1,
        "votes_left_out": {"redacted": 2},
    }
    parts = [json.dumps(line).encode() + b"\n" for line in lines]
    return [*parts, b'{"summary": %s}\n' % json.dumps(summary).encode()]
