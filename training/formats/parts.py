"""What all formats are made of: texts, messages, prompts and answers, each checked where it stands in its row.

Knows no format by its fields. Whatever is not as it must be is a `RowError` with the place and the reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Format = Literal[
    "trl", "trl_implicit", "kto", "openai", "nova", "ultrafeedback", "ultrafeedback_raw", "hh", "nectar",
    "alpaca", "sharegpt", "kto_tag", "llama_factory_v1", "argilla", "intel", "icr", "prompt_pairs", "chat_template",
    "nemo_rl",
]  # fmt: skip
Message = dict[str, str]  # role, content
Row = Mapping[str, Any]  # the fields that say something: not null, but for a prompt
Said = tuple[list[Message], str | None, str | None]  # prompt, chosen, rejected; a single thumb has one of the two

ROLES = ("system", "user", "assistant")
CHANGE_THE_PROMPT = ("tools", "images", "image", "videos", "audios", "documents", "chat_template_kwargs")
CHANGED_PROMPT = "not supported, and without it the prompt would be another; remove the row or the field"

_ENDLESS = 1e15  # no score or rank is as large; NaN is not smaller either
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL, or half of a surrogate pair


@dataclass(frozen=True, slots=True)
class Shape:
    """A format: how its rows are told from others, and what they say."""

    name: Format
    family: str  # rows of one family may be mixed in a file
    looks: str  # for people
    reads: tuple[str, ...]  # fields
    fits: Callable[[Row], bool]
    said: Callable[[Row], Said]  # raises `RowError`


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


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a format writes a message."""

    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=lambda: {role: role for role in ROLES})  # theirs -> ours
    part: str | None = None  # content may be a list of parts, each with its text under this name
    harmless: frozenset[str] = frozenset()  # other fields of a message, which do not change the prompt


CHAT = Spelling()


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
        raise RowError(None, 'not a JSON object; each line is one, such as {"prompt": ..., "chosen": ...}')
    return fields


def required(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise RowError(name, "missing")
    return row[name]


def text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(where, "must be a string")
    if not value.strip():
        raise RowError(where, "empty text")
    if _UNSTORABLE.search(value):
        raise RowError(where, "holds a NUL character or half of a surrogate pair; remove it")
    return value


def messages(where: str, value: Any, spelling: Spelling = CHAT, *, text_role: str | None = None) -> list[Message]:
    """A list of messages. With a `text_role` a plain string is one message of it."""
    if text_role is not None and isinstance(value, str):
        return [{"role": text_role, "content": text(where, value)}]
    if not isinstance(value, list):
        raise RowError(where, f"must be {'a string or ' if text_role else ''}a list of messages")
    if not value:
        raise RowError(where, "empty list of messages")
    return [message(f"{where}.{index}", item, spelling) for index, item in enumerate(value)]


def message(where: str, value: Any, spelling: Spelling = CHAT) -> Message:
    needed = {spelling.role, spelling.content}
    said = {name for name, item in value.items() if item or name in needed} if isinstance(value, dict) else set()
    if said - spelling.harmless != needed or value[spelling.role] is None or value[spelling.content] is None:
        names = f"{spelling.role} and {spelling.content}"
        raise RowError(where, f"must be a message: an object with {names} and nothing else")
    role = value[spelling.role]
    if not isinstance(role, str) or role not in spelling.roles:
        raise RowError(f"{where}.{spelling.role}", f"unknown role; use one of {', '.join(spelling.roles)}")
    return {"role": spelling.roles[role], "content": content(f"{where}.{spelling.content}", value, spelling)}


def content(where: str, value: dict[str, Any], spelling: Spelling) -> str:
    """The text of a message; of several parts with a line break between, as vLLM joins them."""
    given = value[spelling.content]
    if spelling.part is None or not isinstance(given, list):
        return text(where, given)
    if not given:
        raise RowError(where, "empty list of parts")
    return "\n".join(_part(f"{where}.{index}", part, spelling.part) for index, part in enumerate(given))


def _part(where: str, value: Any, name: str) -> str:
    if not isinstance(value, dict) or value.get("type") not in (None, "text") or value.get(name) is None:
        raise RowError(where, f"only parts of text are supported: {{type: text, {name}}}")
    if others := [key for key, item in value.items() if item and key not in ("type", name)]:
        raise RowError(f"{where}.{others[0]}", CHANGED_PROMPT)
    return text(f"{where}.{name}", value[name])


def asked(row: Row, name: str) -> list[Message]:
    """A question in the field `name`, behind the row's own system message if there is one."""
    question: Message = {"role": "user", "content": text(name, required(row, name))}
    return [*system(row), question]


def system(row: Row) -> list[Message]:
    return [{"role": "system", "content": text("system", row["system"])}] if row.get("system") else []


def ending_with_user(prompt: list[Message], where: str = "prompt") -> list[Message]:
    if not prompt or prompt[-1]["role"] != "user":
        raise RowError(where, "its last message must be the user's")
    return prompt


def answer(name: str, turns: list[Message], prompt: list[Message]) -> str:
    """What comes after the prompt; `turns` may repeat the prompt before it, as whole conversations do."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0]["role"] != "assistant":
        raise RowError(name, "must end in exactly one assistant message after the prompt")
    return rest[0]["content"]


def pair(prompt: list[Message], chosen: str, rejected: str, where: str = "rejected") -> Said:
    if chosen == rejected:
        raise RowError(where, "the same as chosen")
    return prompt, chosen, rejected


def liked(row: Row, label: str) -> bool:
    up = row.get(label)
    if not isinstance(up, bool):
        raise RowError(label, "missing" if up is None else f"must be true or false, not {up!r:.40}")
    return up


def thumb(prompt: list[Message], answer: str, *, up: bool) -> Said:
    return (prompt, answer, None) if up else (prompt, None, answer)


def shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))


def worth(where: str, value: Any) -> float:
    """A score or a rank."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _ENDLESS:
        raise RowError(where, "must be a number")
    return float(value)


def best_and_other(where: str, answers: Sequence[tuple[float, str]]) -> tuple[str, str]:
    """Of answers with what they are worth the best, and one of the worse: always the same one, as good as by chance.

    Not the worst: against it the best differs in so much that little is learned of what made it good, which is why
    UltraFeedback's own binarization takes any other (Tunstall et al. 2023, arXiv 2310.16944). Of equals the digest
    of the text decides. Raises `RowError` where none is worse.
    """
    top = max((value for value, _ in answers), default=0.0)
    best = min((said for value, said in answers if value == top), key=_digest, default="")
    worse = [said for value, said in answers if value < top and said != best]
    if not worse:
        raise RowError(where, "no answer is worse than the best one")
    return best, min(worse, key=lambda said: _digest(f"{best}\n{said}"))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
