"""Telling a client that its answer cannot be rated, because no record of it is known to be durable.

A whole answer says so in its body, a stream in its last chunk before `[DONE]`: whether the record is durable is known
only when the last token is. Clients that know nothing of the field pass over it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from serving.contracts import ChatAnswer

UNRATEABLE = {"rateable": False}
_DONE = "data: [DONE]\n\n"
_ERROR = 'data: {"error"'  # a stream that broke off says nothing else
_NOTHING_MORE = {"index": 0, "delta": {}, "finish_reason": None}


@dataclass
class Record:
    """Of one request's answer."""

    durable: bool | None = None  # None: the answer is not complete yet, or broke off


def unrateable(answer: ChatAnswer) -> ChatAnswer:
    assert answer.body is not None, "a stream is marked by `marked`"
    return dataclasses.replace(answer, body=answer.body | UNRATEABLE, rateable=False)


async def marked(stream: AsyncIterator[str], record: Record) -> AsyncIterator[str]:
    """The same events without delay; only those behind a record that failed wait for one another, to mark the last."""
    held, last = "", _ERROR
    try:
        async for event in stream:
            if event == _DONE and not record.durable and not last.startswith(_ERROR):
                held = _mark(held) if held else _mark(last, choices=[_NOTHING_MORE], usage=None)
            if held:
                yield held
                held = ""
            if record.durable is False and event != _DONE:
                held = event
            else:
                yield event
            last = event
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _mark(event: str, **instead: Any) -> str:
    return f"data: {json.dumps(json.loads(event.removeprefix('data: ')) | instead | UNRATEABLE)}\n\n"
