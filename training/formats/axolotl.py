"""axolotl's formats: a question under one name or another, behind an optional system message.

    argilla        {"system": ..., "instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"}
    intel          {"system": ..., "question": "Hi", "chosen": "Hello!", "rejected": "What?"}
    icr            {"system": ..., "input": "Hi", "chosen": "Hello!", "rejected": "What?"}
    prompt_pairs   {"system": "Be kind.", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    chat_template  {"messages": [{"role": "user", "content": "Hi"}], "chosen": {"role": "assistant", "content": "Hello!"},
                    "rejected": {"role": "assistant", "content": "What?"}}

`prompt_pairs` may stand in one file with TRL's pairs, which have no system message. For KTO the first four have
`completion` and `label` in place of the two answers. Its `ultra` is `ultrafeedback`, its `argilla_chat` is
`trl_implicit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training.formats.parts import (
    Message,
    Row,
    Said,
    Shape,
    answer,
    asked,
    ending_with_user,
    liked,
    message,
    messages,
    pair,
    required,
    system,
    text,
    thumb,
)
from training.formats.trl import PAIRED, UNPAIRED, one_of

_RESPONSES = ("chosen_response", "rejected_response")


def _questioned(name: str, sides: tuple[str, str] = PAIRED) -> Callable[[Row], Said]:
    """The reader of rows whose question has this name."""

    def said(row: Row) -> Said:
        prompt = asked(row, name)
        if one_of(row, UNPAIRED) and not one_of(row, sides):
            return thumb(prompt, text("completion", required(row, "completion")), up=liked(row, "label"))
        chosen, rejected = (text(side, required(row, side)) for side in sides)
        return pair(prompt, chosen, rejected, sides[1])

    return said


def _chat(row: Row) -> Said:
    given = [*system(row), *messages("messages", required(row, "messages"), text_role="user")]
    prompt = ending_with_user(given, "messages")
    return pair(prompt, *(answer(name, _output(name, required(row, name)), prompt) for name in PAIRED))


def _output(name: str, value: Any) -> list[Message]:
    if isinstance(value, dict):
        return [message(name, value)]
    return messages(name, value, text_role="assistant")


def _asks(row: Row, name: str) -> bool:
    return name in row and row.get("prompt") is None and one_of(row, (*PAIRED, *UNPAIRED))


_ANSWERS = (*PAIRED, *UNPAIRED)
FORMATS = (
    Shape(
        "argilla", "axolotl", "{system, instruction, chosen_response, rejected_response}",
        ("system", "instruction", *_RESPONSES, *UNPAIRED),
        lambda row: one_of(row, _RESPONSES) or ("instruction" in row and one_of(row, UNPAIRED) and "prompt" not in row),
        _questioned("instruction", _RESPONSES),
    ),
    Shape(
        "chat_template", "axolotl", "{messages, chosen: {role, content}, rejected: {role, content}}",
        ("system", "messages", *PAIRED),
        lambda row: "messages" in row and any(isinstance(row.get(name), dict) for name in PAIRED), _chat,
    ),
    Shape(
        "intel", "axolotl", "{system, question, chosen, rejected}", ("system", "question", *_ANSWERS),
        lambda row: _asks(row, "question"), _questioned("question"),
    ),
    Shape(
        "icr", "axolotl", "{system, input, chosen, rejected}", ("system", "input", *_ANSWERS),
        lambda row: _asks(row, "input") and "instruction" not in row, _questioned("input"),
    ),
    Shape(
        "prompt_pairs", "trl", "{system, prompt, chosen, rejected} of strings", ("system", "prompt", *_ANSWERS),
        lambda row: bool(row.get("system")) and isinstance(row.get("prompt"), str) and one_of(row, _ANSWERS),
        _questioned("prompt"),
    ),
)  # fmt: skip
