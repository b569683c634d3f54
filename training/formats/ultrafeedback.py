"""UltraFeedback, as HuggingFaceH4 made pairs of it and as openbmb collected it.

    ultrafeedback      {"prompt": "Hi", "chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}
                       (axolotl's `ultra`; Argilla's cleaned pairs too)
    ultrafeedback_raw  {"instruction": "Hi", "completions": [{"response": "Hello!", "overall_score": 8.5}, ...]}

The raw rows rate four answers. They give one pair: the best against one of the worse (`parts.best_and_other`). The
system prompts that openbmb gave its models differ from answer to answer, so they are no part of the prompt.
"""

from __future__ import annotations

from typing import Any

from training.formats.parts import Row, RowError, Said, Shape, asked, best_and_other, pair, required, text, worth
from training.formats.trl import PAIRED, pair_of

_SCORES = ("overall_score", "fine-grained_score")


def _whole_conversations(row: Row) -> bool:
    """A question as a string beside conversations that hold it."""

    def begins_before_the_answer(value: Any) -> bool:
        return isinstance(value, list) and len(value) > 1

    return isinstance(row.get("prompt"), str) and all(begins_before_the_answer(row.get(name)) for name in PAIRED)


def _raw(row: Row) -> Said:
    completions = required(row, "completions")
    if not isinstance(completions, list):
        raise RowError("completions", "must be a list of answers with their scores")
    rated = [_rated(f"completions.{index}", item) for index, item in enumerate(completions)]
    return pair(asked({"instruction": row.get("instruction")}, "instruction"), *best_and_other("completions", rated))


def _rated(where: str, value: Any) -> tuple[float, str]:
    if not isinstance(value, dict):
        raise RowError(where, "must be an object with response and overall_score")
    score = next((name for name in _SCORES if value.get(name) is not None), _SCORES[0])
    return worth(f"{where}.{score}", value.get(score)), text(f"{where}.response", value.get("response"))


FORMATS = (
    Shape(
        "ultrafeedback", "trl", "{prompt, chosen, rejected} of a string and whole conversations", ("prompt", *PAIRED),
        _whole_conversations, pair_of,
    ),
    Shape(
        "ultrafeedback_raw", "ultrafeedback_raw", "{instruction, completions: [{response, overall_score}]}",
        ("instruction", "completions"), lambda row: "instruction" in row and "completions" in row, _raw,
    ),
)  # fmt: skip
