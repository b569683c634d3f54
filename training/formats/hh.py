r"""Anthropic's HH, and Nectar, which writes its prompts the same way.

    hh      {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
    nectar  {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": [{"answer": "Hello!", "rank": 1.0}, ...]}

The prompt is all turns that both dialogues share; each must go on with one turn of the assistant's, and no more. White
space around a turn is not its own. Nectar ranks seven answers, the best 1; they give one pair: the best against one of
the worse (`parts.best_and_other`). axolotl's `nectar` takes the two that rank last, with the second last rejected.
"""

from __future__ import annotations

import re
from typing import Any

from training.formats.parts import (
    Message,
    Row,
    RowError,
    Said,
    Shape,
    answer,
    best_and_other,
    ending_with_user,
    pair,
    required,
    shared,
    text,
    worth,
)

_ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_BEGINNING = re.compile(r"\s*Human:")


def is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and _BEGINNING.match(value) is not None


def turns(where: str, dialogue: str, *, to_be_answered: bool = False) -> list[Message]:
    """A dialogue as messages; one that is `to_be_answered` may end with an empty turn of the assistant's."""
    before, *parts = _TURN.split(text(where, dialogue).lstrip())
    if before.strip() or not parts:
        raise RowError(where, "must begin with 'Human:'")
    spoken = [(_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if to_be_answered and spoken[-1] == ("assistant", ""):
        spoken.pop()
    if not all(said for _, said in spoken):
        raise RowError(where, "has an empty turn")
    return [{"role": role, "content": said} for role, said in spoken]


def _pair(row: Row) -> Said:
    chosen, rejected = (turns(name, required(row, name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowError("rejected", "the same as chosen")
    prompt = chosen[: shared(chosen, rejected)]
    if not prompt:
        raise RowError("rejected", "does not begin with the same turn as chosen")
    ending_with_user(prompt, "chosen")
    return pair(prompt, answer("chosen", chosen, prompt), answer("rejected", rejected, prompt))


def _ranked(row: Row) -> Said:
    question, answers = required(row, "prompt"), row["answers"]
    if not isinstance(answers, list):
        raise RowError("answers", "must be a list of answers with their ranks")
    if is_dialogue(question):
        prompt = ending_with_user(turns("prompt", question, to_be_answered=True))
    else:
        prompt = [{"role": "user", "content": text("prompt", question)}]
    ranked = [_answer(f"answers.{index}", item) for index, item in enumerate(answers)]
    return pair(prompt, *best_and_other("answers", ranked))


def _answer(where: str, value: Any) -> tuple[float, str]:
    if not isinstance(value, dict):
        raise RowError(where, "must be an object with answer and rank")
    return -worth(f"{where}.rank", value.get("rank")), text(f"{where}.answer", value.get("answer"))


FORMATS = (
    Shape(
        "hh", "hh", r"{chosen, rejected} of dialogues '\n\nHuman: ...\n\nAssistant: ...'", ("chosen", "rejected"),
        lambda row: "prompt" not in row and any(is_dialogue(row.get(name)) for name in ("chosen", "rejected")), _pair,
    ),
    Shape("nectar", "nectar", "{prompt, answers: [{answer, rank}]}", ("prompt", "answers"),
          lambda row: "answers" in row and "prompt" in row, _ranked),
)  # fmt: skip
