"""NeMo-RL's format of preferences; its BinaryPreference is TRL's.

    nemo_rl  {"context": [{"role": "user", "content": "Hi"}],
              "completions": [{"rank": 0, "completion": [{"role": "assistant", "content": "Hello!"}]},
                              {"rank": 1, "completion": [{"role": "assistant", "content": "What?"}]}]}

Rank 0 is best. Of more than two completions: the best against one of the worse (`parts.best_and_other`).
"""

from __future__ import annotations

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
    messages,
    pair,
    required,
    worth,
)


def _said(row: Row) -> Said:
    prompt = ending_with_user(messages("context", required(row, "context"), text_role="user"), "context")
    completions = row["completions"]
    if not isinstance(completions, list):
        raise RowError("completions", "must be a list of completions with their ranks")
    ranked = [_ranked(f"completions.{index}", item, prompt) for index, item in enumerate(completions)]
    return pair(prompt, *best_and_other("completions", ranked))


def _ranked(where: str, value: Any, prompt: list[Message]) -> tuple[float, str]:
    if not isinstance(value, dict):
        raise RowError(where, "must be an object with rank and completion")
    turns = messages(f"{where}.completion", value.get("completion"), text_role="assistant")
    return -worth(f"{where}.rank", value.get("rank")), answer(f"{where}.completion", turns, prompt)


FORMATS = (
    Shape(
        "nemo_rl", "nemo_rl", "{context, completions: [{rank, completion}]}", ("context", "completions"),
        lambda row: "context" in row and "completions" in row, _said,
    ),
)  # fmt: skip
