"""Preference pairs from a file: TRL's JSON lines, each normalised to messages, or a reason why it cannot be.

Pure: reads lines, knows no store and no tokenizer. All of these say the same:

    {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [{"role": "user", ...}, ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.digest import content_digest
from service.pairs import ImportedPair

FIELDS = ("prompt", "chosen", "rejected")
ROLES = ("system", "user", "assistant")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, or half of a surrogate pair

Message = dict[str, str]  # role, content


class LineFault(BaseModel):
    """Why a line gives no pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: int  # from 1
    field: str | None  # such as "chosen" or "prompt.0.role"; None: the whole line
    reason: str


class _LineError(Exception):
    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def parse(lines: Iterable[str | bytes]) -> tuple[list[ImportedPair], list[LineFault]]:
    """The pairs in the order of their lines, and the first fault of each line that gives none. Blank lines give neither.

    Split bytes at b"\\n" or read a file line by line: `str.splitlines` also cuts inside of a text.
    """
    pairs: list[ImportedPair] = []
    faults: list[LineFault] = []
    line_of: dict[str, int] = {}  # pair id -> the line that gave it
    for number, line in enumerate(lines, start=1):
        try:
            text = _decoded(line)
            if not text:
                continue
            pair = _pair(_object(text))
            if pair.id in line_of:
                raise _LineError(None, f"duplicate of line {line_of[pair.id]}")
        except _LineError as fault:
            faults.append(LineFault(line=number, field=fault.field, reason=fault.reason))
        else:
            line_of[pair.id] = number
            pairs.append(pair)
    return pairs, faults


def _decoded(line: str | bytes) -> str:
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _LineError(None, f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    return line.removeprefix("\ufeff").strip()  # some editors begin a file with a byte order mark


def _object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise _LineError(None, f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):
        raise _LineError(None, "not valid JSON: nested too deeply, or a number with too many digits") from None
    if not isinstance(parsed, dict):
        raise _LineError(None, "not a JSON object; each line must be {prompt, chosen, rejected}")
    for name in parsed:
        if name not in FIELDS:
            raise _LineError(name, f"unknown field; a line has {', '.join(FIELDS)} and nothing else")
    return parsed


def _pair(fields: dict[str, Any]) -> ImportedPair:
    chosen, rejected = (_messages(fields, name, text_role="assistant") for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise _LineError("rejected", "the same as chosen")
    given = "prompt" in fields
    prompt = _messages(fields, "prompt", text_role="user") if given else _common_prefix(chosen, rejected)
    if not prompt:
        raise _LineError("prompt", "missing, and chosen and rejected do not begin with the same messages")
    if prompt[-1]["role"] != "user":
        raise _LineError("prompt", "its last message must be the user's")
    answers = {name: _answer(name, turns, prompt) for name, turns in (("chosen", chosen), ("rejected", rejected))}
    if answers["chosen"] == answers["rejected"]:
        raise _LineError("rejected", "the same as chosen")
    content = {"messages": prompt, **answers}
    return ImportedPair(id=content_digest(content), messages=tuple(prompt), **answers)


def _messages(fields: dict[str, Any], name: str, *, text_role: str) -> list[Message]:
    """The field as messages; a plain string is one message of `text_role`."""
    if name not in fields:
        raise _LineError(name, "missing")
    value = fields[name]
    if isinstance(value, str):
        return [{"role": text_role, "content": _text(name, value)}]
    if not isinstance(value, list):
        raise _LineError(name, "must be a string or a list of messages")
    if not value:
        raise _LineError(name, "empty list of messages")
    return [_message(f"{name}.{index}", message) for index, message in enumerate(value)]


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise _LineError(where, "must be a message: an object with role and content and nothing else")
    if value["role"] not in ROLES:
        raise _LineError(f"{where}.role", f"unknown role; use one of {', '.join(ROLES)}")
    return {"role": value["role"], "content": _text(f"{where}.content", value["content"])}


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _LineError(where, "must be a string")
    if not value.strip():
        raise _LineError(where, "empty text")
    if _UNSTORABLE.search(value):
        raise _LineError(where, "holds a NUL character or half of a surrogate pair; remove it")
    return value


def _common_prefix(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared]


def _answer(name: str, turns: list[Message], prompt: list[Message]) -> str:
    """What comes after the prompt; `turns` may repeat the prompt before it, as full conversations do."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0]["role"] != "assistant":
        raise _LineError(name, "must end in exactly one assistant message after the prompt")
    return rest[0]["content"]
