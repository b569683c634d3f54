"""Bad rows in the formats that are not TRL's: the field and the reason of each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.format_rows import (
    ALPACA,
    BAD,
    CHAT_TEMPLATE,
    GOOD,
    GPT,
    HH,
    HUMAN,
    NECTAR,
    NEMO,
    NOVA,
    OPENAI,
    SHAREGPT,
    UNRANKED,
    USER,
    V1,
    refusal,
    v1,
)

_FAULTS: list[tuple[dict[str, Any], str | None, str]] = [
    (OPENAI | {"input": {"messages": [USER], "tools": [{"type": "function"}]}}, "input.tools", "not supported"),
    (OPENAI | {"input": [USER]}, "input", "must be an object"),
    (OPENAI | {"input": {}}, "input.messages", "must be a list of messages"),
    (OPENAI | {"preferred_output": [GOOD, GOOD]}, "preferred_output", "exactly one assistant message"),
    (OPENAI | {"non_preferred_output": [GOOD]}, "non_preferred_output", "the same as chosen"),
    (OPENAI | {"preferred_output": [GOOD | {"tool_calls": [{"id": "x"}]}]}, "preferred_output.0", "must be a message"),
    (OPENAI | {"preferred_output": [{"role": "tool", "content": "x"}]}, "preferred_output.0.role", "unknown role"),
    (OPENAI | {"input": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}},
     "input.messages.0.content.0", "only parts of text"),
    ({"preferred_output": [GOOD], "non_preferred_output": [BAD]}, "input", "missing"),
    (NOVA | {"messages": [*NOVA["messages"][:1], {"role": "assistant", "candidates": [{"content": []}]}]},
     "messages.1.candidates", "preferenceLabel 'preferred'"),
    (NOVA | {"messages": NOVA["messages"][1:]}, "messages", "must be the user's"),
    (NOVA | {"messages": [{"role": "user", "content": [{"text": "Hi"}, {"image": {"format": "png"}}]},
                          NOVA["messages"][1]]}, "messages.0.content.1", "only parts of text"),
    (UNRANKED | {"completions": [{"response": "Hello!"}]}, "completions.0.overall_score", "must be a number"),
    (UNRANKED | {"completions": {"a": 1}}, "completions", "must be a list"),
    (HH | {"rejected": "What?"}, "rejected", "must begin with 'Human:'"),
    (HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: What?"}, "rejected", "does not begin with the same turn"),
    (HH | {"rejected": "\n\nHuman: Hi\n\nAssistant:"}, "rejected", "has an empty turn"),
    (NECTAR | {"answers": [{"answer": "x", "rank": True}]}, "answers.0.rank", "must be a number"),
    (NECTAR | {"answers": [{"answer": "x", "rank": 10**400}]}, "answers.0.rank", "must be a number"),
    (ALPACA | {"instruction": ""}, "instruction", "empty text"),
    (ALPACA | {"history": [["Hi"]]}, "history", "must be a list of [question, answer]"),
    (ALPACA | {"images": ["x.png"]}, "images", "not supported"),
    (SHAREGPT | {"conversations": [HUMAN, GPT]}, "conversations", "must be the user's"),
    (SHAREGPT | {"conversations": [HUMAN | {"from": "observation"}]}, "conversations.0.from", "unknown role"),
    (SHAREGPT | {"rejected": HUMAN}, "rejected", "exactly one assistant message"),
    (V1 | {"rejected_messages": v1(BAD)}, "chosen_messages", "must be the user's"),
    ({"messages": [USER], "label": True}, "messages", "must be the user's"),
    ({"question": "Hi", "chosen": "Hello!"}, "rejected", "missing"),
    (CHAT_TEMPLATE | {"rejected": USER}, "rejected", "exactly one assistant message"),
    (NEMO | {"completions": [{"rank": 0, "completion": [USER]}]}, "completions.0.completion", "exactly one assistant"),
    (NEMO | {"completions": [{"rank": 0, "completion": [GOOD]}]}, "completions", "no answer is worse"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "reason"), _FAULTS)
def test_a_bad_row_of_other_formats_names_the_field_and_the_reason(
    fields: dict[str, Any], field: str | None, reason: str
) -> None:
    found = refusal(fields)
    assert found[0] == field
    assert reason in found[1]
