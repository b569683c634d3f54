"""LLaMA-Factory's formats.

    alpaca            {"instruction": "Say hi", "input": "to Ada", "chosen": "Hi Ada!", "rejected": "What?",
                       "system": ..., "history": [["question", "answer"], ...]}
    sharegpt          {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"},
                       "rejected": {"from": "gpt", "value": "What?"}, "system": ...}
    kto_tag           {"instruction": "Say hi", "input": "", "output": "Hi!", "kto_tag": true, ...}
                      {"conversations": [..., {"from": "gpt", "value": "Hello!"}], "kto_tag": true}
                      {"messages": [..., {"role": "assistant", "content": "Hello!"}], "label": true}
    llama_factory_v1  {"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}],
                       "loss_weight": 0.0}, ...], "rejected_messages": [...]}

Its pairs of messages, `{"messages", "chosen", "rejected"}`, are what axolotl calls `chat_template`.
"""

from __future__ import annotations

from typing import Any

from training.formats.parts import (
    CHAT,
    Message,
    Row,
    RowError,
    Said,
    Shape,
    Spelling,
    answer,
    ending_with_user,
    liked,
    message,
    messages,
    pair,
    required,
    shared,
    system,
    text,
    thumb,
)
from training.formats.trl import PAIRED, one_of

_SHAREGPT = Spelling(
    "from", "value",
    {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    harmless=frozenset({"weight"}),
)  # fmt: skip
_V1 = Spelling(part="value", harmless=frozenset({"loss_weight"}))
_V1_SIDES = ("chosen_messages", "rejected_messages")


def _alpaca(row: Row) -> Said:
    return pair(_instructed(row), *(text(name, required(row, name)) for name in PAIRED))


def _sharegpt(row: Row) -> Said:
    turns = [*system(row), *messages("conversations", row["conversations"], _SHAREGPT)]
    prompt = ending_with_user(turns, "conversations")
    return pair(prompt, *(answer(name, [message(name, required(row, name), _SHAREGPT)], prompt) for name in PAIRED))


def _tagged(row: Row) -> Said:
    label = "kto_tag" if "kto_tag" in row else "label"
    up = liked(row, label)
    if "instruction" in row:
        return thumb(_instructed(row), text("output", row.get("output")), up=up)
    name = "conversations" if "conversations" in row else "messages"
    spelling = _SHAREGPT if name == "conversations" else CHAT
    *prompt, last = [*system(row), *messages(name, required(row, name), spelling)]
    return thumb(ending_with_user(prompt, name), answer(name, [last], prompt), up=up)


def _v1(row: Row) -> Said:
    chosen, rejected = (messages(name, required(row, name), _V1) for name in _V1_SIDES)
    if chosen == rejected:
        raise RowError(_V1_SIDES[1], "the same as chosen_messages")
    prompt = ending_with_user(chosen[: shared(chosen, rejected)], _V1_SIDES[0])
    return pair(prompt, answer(_V1_SIDES[0], chosen, prompt), answer(_V1_SIDES[1], rejected, prompt))


def _instructed(row: Row) -> list[Message]:
    """The instruction and its input are one question, with a line break between them."""
    parts = [text(name, row[name]) for name in ("instruction", "input") if row.get(name)]
    if not parts:
        raise RowError("instruction", "empty text")
    return [*system(row), *_history(row.get("history")), {"role": "user", "content": "\n".join(parts)}]


def _history(value: Any) -> list[Message]:
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise RowError("history", "must be a list of [question, answer]")
    return [
        {"role": role, "content": text(f"history.{index}.{side}", said)}
        for index, turn in enumerate(value)
        for side, (role, said) in enumerate(zip(("user", "assistant"), turn, strict=True))
    ]


def _is_tagged(row: Row) -> bool:
    return "kto_tag" in row or ("label" in row and "messages" in row and "completion" not in row)


_ASKED = ("system", "history", "instruction", "input")
FORMATS = (
    Shape(
        "llama_factory_v1", "llama_factory", "{chosen_messages, rejected_messages}", _V1_SIDES,
        lambda row: one_of(row, _V1_SIDES), _v1,
    ),
    Shape(
        "kto_tag", "llama_factory", "{instruction, input, output, kto_tag} or {conversations, kto_tag}",
        (*_ASKED, "output", "conversations", "messages", "kto_tag", "label"), _is_tagged, _tagged,
    ),
    Shape(
        "sharegpt", "llama_factory", "{conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}}",
        ("system", "conversations", *PAIRED), lambda row: "conversations" in row and one_of(row, PAIRED), _sharegpt,
    ),
    Shape(
        "alpaca", "llama_factory", "{instruction, input, chosen, rejected, system, history}", (*_ASKED, *PAIRED),
        lambda row: "instruction" in row and row.get("prompt") is None and one_of(row, PAIRED), _alpaca,
    ),
)  # fmt: skip
