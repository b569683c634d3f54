"""TRL's formats of preferences: the fields of a row as messages with answers, or the reason why they are none.

Pure: knows the names of TRL's fields; knows no file, no tokenizer and no torch. A row's format follows from its fields,
so that one file may hold pairs and thumbs:

    standard        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    conversational  {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    implicit        {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [{"role": "user", ...}, ...]}
    kto             {"prompt": "Hi", "completion": "Hello!", "label": true}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["standard", "conversational", "implicit", "kto"]
Message = dict[str, str]  # role, content

SHAPES: dict[Format, str] = {
    "standard": "{prompt, chosen, rejected} of strings",
    "conversational": "{prompt, chosen, rejected} with lists of messages",
    "implicit": "{chosen, rejected} that begin with the prompt",
    "kto": "{prompt, completion, label}",
}
ROLES = ("system", "user", "assistant")

_PAIRED, _UNPAIRED = ("chosen", "rejected"), ("completion", "label")
FIELDS = ("prompt", *_PAIRED, *_UNPAIRED)
CHANGE_THE_PROMPT = ("tools", "images", "image", "chat_template_kwargs")  # fields of TRL's that are not known here
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, or half of a surrogate pair


@dataclass(frozen=True, slots=True)
class Preference:
    """A row: a pair, or a thumb, which has only the chosen answer (up) or only the rejected one (down)."""

    row: int  # in its file, from 1; of JSON lines the line
    format: Format
    messages: list[Message]  # the last one is the user's
    chosen: str | None
    rejected: str | None
    ignored: tuple[str, ...] = ()  # fields that say nothing here


class RowError(Exception):
    """The field of a row that is at fault, None for the whole of it, and why."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def json_object(line: bytes) -> dict[str, Any] | None:
    """A line of JSON, None when it is blank. Raises `RowError`."""
    try:
        text = line.decode("utf-8").removeprefix("\ufeff").strip()  # some editors begin a file with a byte order mark
        fields = json.loads(text) if text else None
    except UnicodeDecodeError as error:
        raise RowError(None, f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise RowError(None, f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (RecursionError, ValueError):
        raise RowError(None, "not valid JSON: nested too deeply, or a number with too many digits") from None
    if text and not isinstance(fields, dict):
        raise RowError(None, f"not a JSON object; each line is one, such as {SHAPES['standard']}")
    return fields


def preference(row: int, fields: Mapping[str, Any], format: Format | None = None) -> Preference:
    """What the fields of a row say. Raises `RowError` naming the field that is at fault.

    A field that is null counts as absent, because a table has all columns in all rows. Not so a prompt: without it the
    answers would be taken for whole conversations.
    """
    for name in CHANGE_THE_PROMPT:
        if fields.get(name):
            raise RowError(
                name, "not supported, and without it the prompt would be another; remove the row or the field"
            )
    given = {name: fields[name] for name in FIELDS if name in fields}
    given = {name: value for name, value in given.items() if value is not None or name == "prompt"}
    if format == "implicit":
        given.pop("prompt", None)
    recognised = _recognised(given, fields)
    if format not in (None, recognised):
        raise RowError(None, f"its format is {recognised}, not {format}: {SHAPES[format]}")
    messages, chosen, rejected = _thumb(given) if recognised == "kto" else _pair(given)
    ignored = tuple(name for name in fields if name not in given and (name not in FIELDS or name == "prompt"))
    return Preference(row, recognised, messages, chosen, rejected, ignored)


def _recognised(given: Mapping[str, Any], fields: Mapping[str, Any]) -> Format:
    paired, unpaired = (any(name in given for name in names) for names in (_PAIRED, _UNPAIRED))
    if paired and unpaired:
        raise RowError(None, f"both a pair and a thumb: it has {', '.join(given)}; make it two rows")
    if not paired and not unpaired:
        names = ", ".join(name for name, value in fields.items() if value is not None)
        raise RowError(None, f"none of the known formats: it has {names or 'no field'}; give {all_shapes()}")
    if unpaired:
        return "kto"
    if "prompt" not in given:
        return "implicit"
    return "conversational" if any(isinstance(value, list) for value in given.values()) else "standard"


def _pair(fields: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    if "prompt" not in fields and all(isinstance(fields.get(name), str) for name in _PAIRED):
        fields = _split(_text("chosen", fields["chosen"]), _text("rejected", fields["rejected"]))
    chosen, rejected = (_messages(fields, name, text_role="assistant") for name in _PAIRED)
    if chosen == rejected:
        raise RowError("rejected", "the same as chosen")
    prompt = _prompt(fields, chosen, rejected)
    answers = _answer("chosen", chosen, prompt), _answer("rejected", rejected, prompt)
    if answers[0] == answers[1]:
        raise RowError("rejected", "the same as chosen")
    return prompt, *answers


def _thumb(fields: Mapping[str, Any]) -> tuple[list[Message], str | None, str | None]:
    up = fields.get("label")
    if not isinstance(up, bool):
        raise RowError("label", "missing" if up is None else f"must be true or false, not {up!r}")
    prompt = _ending_with_user(_messages(fields, "prompt", text_role="user"))
    answer = _answer("completion", _messages(fields, "completion", text_role="assistant"), prompt)
    return (prompt, answer, None) if up else (prompt, None, answer)


def _split(chosen: str, rejected: str) -> dict[str, str]:
    """Two texts that begin with the prompt: it is all that they share, and a space before the answers is theirs.

    As TRL's `extract_prompt`, save where that goes wrong by a character: texts of which one begins with all of the
    other, and texts that share nothing.
    """
    if chosen == rejected:
        raise RowError("rejected", "the same as chosen")
    prompt = chosen[: _shared(chosen, rejected)].removesuffix(" ")
    if not prompt.strip():
        raise RowError("prompt", "missing, and chosen and rejected do not begin with the same text")
    answers = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    for name, answer in answers.items():
        if not answer.strip():
            raise RowError(name, "nothing but what both begin with, which is the prompt; give the prompt as a field")
    return {"prompt": prompt, **answers}


def _prompt(fields: Mapping[str, Any], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    shared = chosen[: _shared(chosen, rejected)]
    if "prompt" not in fields:
        if not shared:
            raise RowError("prompt", "missing, and chosen and rejected do not begin with the same messages")
        return _ending_with_user(shared)
    prompt = _messages(fields, "prompt", text_role="user")
    if isinstance(fields["prompt"], str) and shared[-1:] == prompt:
        return shared  # whole conversations, of which the string is the last question only
    return _ending_with_user(prompt)


def _messages(fields: Mapping[str, Any], name: str, *, text_role: str) -> list[Message]:
    """The field as messages; a plain string is one message of `text_role`."""
    if name not in fields:
        raise RowError(name, "missing")
    value = fields[name]
    if isinstance(value, str):
        return [{"role": text_role, "content": _text(name, value)}]
    if not isinstance(value, list):
        raise RowError(name, "must be a string or a list of messages")
    if not value:
        raise RowError(name, "empty list of messages")
    return [_message(f"{name}.{index}", message) for index, message in enumerate(value)]


def _message(where: str, value: Any) -> Message:
    present = {name for name, item in value.items() if item is not None} if isinstance(value, dict) else set()
    if present != {"role", "content"}:
        raise RowError(where, "must be a message: an object with role and content and nothing else")
    if value["role"] not in ROLES:
        raise RowError(f"{where}.role", f"unknown role; use one of {', '.join(ROLES)}")
    return {"role": value["role"], "content": _text(f"{where}.content", value["content"])}


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(where, "must be a string")
    if not value.strip():
        raise RowError(where, "empty text")
    if _UNSTORABLE.search(value):
        raise RowError(where, "holds a NUL character or half of a surrogate pair; remove it")
    return value


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))


def _ending_with_user(prompt: list[Message]) -> list[Message]:
    if prompt[-1]["role"] != "user":
        raise RowError("prompt", "its last message must be the user's")
    return prompt


def _answer(name: str, turns: list[Message], prompt: list[Message]) -> str:
    """What comes after the prompt; `turns` may repeat the prompt before it, as whole conversations do."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0]["role"] != "assistant":
        raise RowError(name, "must end in exactly one assistant message after the prompt")
    return rest[0]["content"]


def all_shapes() -> str:
    return " or ".join(SHAPES.values())
