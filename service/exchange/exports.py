"""Preferences as lines that other programs read: TRL's pairs, TRL's thumbs, OpenAI's pairs.

    trl     {"prompt": [messages], "chosen": [answer], "rejected": [answer]}
    openai  {"input": {"messages": [messages]}, "preferred_output": [answer], "non_preferred_output": [answer]}
    kto     {"prompt": [messages], "completion": [answer], "label": true}, of a pair one of each; also single thumbs

What comes out can be imported again (`training/formats`): the same preferences have the same ids.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ExportFormat = Literal["trl", "openai", "kto"]
Status = Literal["open", "learned", "all"]
Message = dict[str, str]  # role, content

PAGE_PAIRS = 500


@dataclass(frozen=True, slots=True)
class Exportable:
    """A preference with its texts; None is what is not stored, or what a single thumb does not have."""

    id: str
    prompt: list[Message] | None
    chosen: str | None
    rejected: str | None
    is_thumb: bool

    @property
    def is_stored(self) -> bool:
        answers = (self.chosen is not None) + (self.rejected is not None)
        return self.prompt is not None and answers == (1 if self.is_thumb else 2)


class Pages(Protocol):
    """Where preferences come from: `service/store/exports.py`."""

    async def page(self, status: Status, after: str, limit: int) -> list[Exportable]:
        """The next ones by id, all behind `after`; none when there are no more."""
        ...

    async def unstored_votes(self) -> dict[str, int]: ...


async def exported(pages: Pages, format: ExportFormat, status: Status, *, summary: bool) -> AsyncIterator[bytes]:
    """Lines of JSON, a page at a time. With `summary` the last line is `{"summary": ...}`: nothing is missing."""
    written = {"pairs": 0, "thumbs": 0, "lines": 0, "not_stored": 0}
    after = ""
    while page := await pages.page(status, after, PAGE_PAIRS):
        after = page[-1].id
        lines: list[dict[str, Any]] = []
        for preference in page:
            made = lines_of(preference, format) if preference.is_stored else []
            lines += made
            kind = "not_stored" if not preference.is_stored else "thumbs" if preference.is_thumb else "pairs"
            written[kind] += bool(made) or kind == "not_stored"
        written["lines"] += len(lines)
        if lines:
            yield b"".join(map(_line, lines))
    if summary:
        yield _line({"summary": {**written, "votes_left_out": await pages.unstored_votes()}})


def lines_of(preference: Exportable, format: ExportFormat) -> list[dict[str, Any]]:
    """What the format says of it; it must be stored. Nothing of a single thumb in a format of pairs."""
    assert preference.is_stored, "its texts are there"
    prompt = preference.prompt
    better, worse = ([{"role": "assistant", "content": text}] for text in (preference.chosen, preference.rejected))
    if format == "kto":
        sides = ((preference.chosen, better, True), (preference.rejected, worse, False))
        return [
            {"prompt": prompt, "completion": answer, "label": label}
            for text, answer, label in sides
            if text is not None
        ]
    if preference.is_thumb:
        return []
    if format == "openai":
        return [{"input": {"messages": prompt}, "preferred_output": better, "non_preferred_output": worse}]
    return [{"prompt": prompt, "chosen": better, "rejected": worse}]


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
