"""One preference, written in every format: to "Hi" rather "Hello!" than "What?"."""

from __future__ import annotations

from typing import Any

import pytest

from training.formats import Format, RowError, preference

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
THUMB = {"prompt": "Hi", "completion": "Hello!", "label": True}
HUMAN, GPT, BAD_GPT = (
    {"from": who, "value": value} for who, value in (("human", "Hi"), ("gpt", "Hello!"), ("gpt", "What?"))
)
OPENAI = {"input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
          "preferred_output": [GOOD], "non_preferred_output": [BAD]}  # fmt: skip
NOVA = {
    "schemaVersion": "bedrock-conversation-2024",
    "messages": [
        {"role": "user", "content": [{"text": "Hi"}]},
        {"role": "assistant", "candidates": [
            {"content": [{"text": "What?"}], "preferenceLabel": "non-preferred"},
            {"content": [{"text": "Hello!"}], "preferenceLabel": "preferred"},
        ]},
    ],
}  # fmt: skip
UNRANKED = {"instruction": "Hi", "completions": [
    {"response": "What?", "overall_score": 3.0}, {"response": "Hello!", "overall_score": 8.5}]}  # fmt: skip
NECTAR = {"prompt": "\n\nHuman: Hi\n\nAssistant: ",
          "answers": [{"answer": "What?", "rank": 2.0}, {"answer": "Hello!", "rank": 1.0}]}  # fmt: skip
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
NEMO = {"context": [USER], "completions": [{"rank": 1, "completion": [BAD]}, {"rank": 0, "completion": [GOOD]}],
        "task_name": "chat"}  # fmt: skip
ALPACA = {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"}
SHAREGPT = {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD_GPT}
CHAT_TEMPLATE = {"messages": [USER], "chosen": GOOD, "rejected": BAD}


def v1(*turns: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"role": turn["role"], "content": [{"type": "text", "value": turn["content"]}], "loss_weight": 0.0}
        for turn in turns
    ]


V1 = {"chosen_messages": v1(USER, GOOD), "rejected_messages": v1(USER, BAD)}

# Each says: to "Hi" rather "Hello!" than "What?".
PAIRS: list[tuple[Format, dict[str, Any]]] = [
    ("trl", PAIR),
    ("trl", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    ("trl", {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("trl", {"prompt": "Hi", "chosen": [GOOD], "rejected": "What?"}),
    ("trl_implicit", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("trl_implicit", {"chosen": "HiHello!", "rejected": "HiWhat?"}),
    ("openai", OPENAI),
    ("openai", OPENAI | {"preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]}]}),
    ("nova", NOVA),
    ("ultrafeedback", {"prompt": "Hi", "prompt_id": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD],
                       "messages": [USER, GOOD], "score_chosen": 8.0, "score_rejected": 3.0}),
    ("ultrafeedback_raw", UNRANKED),
    ("ultrafeedback_raw", {"instruction": "Hi", "source": "x", "models": ["a", "b"], "completions": [
        {"response": "Hello!", "fine-grained_score": 4.5, "annotations": {}},
        {"response": "What?", "fine-grained_score": 1, "custom_system_prompt": "Be terse."}]}),
    ("hh", HH),
    ("nectar", NECTAR),
    ("nectar", NECTAR | {"prompt": "Hi"}),
    ("alpaca", ALPACA),
    ("sharegpt", SHAREGPT),
    ("llama_factory_v1", V1),
    ("argilla", {"instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"}),
    ("intel", {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "What?"}),
    ("icr", {"input": "Hi", "chosen": "Hello!", "rejected": "What?", "status": "tie"}),
    ("chat_template", CHAT_TEMPLATE),
    ("chat_template", {"messages": "Hi", "chosen": GOOD, "rejected": "What?"}),
    ("nemo_rl", NEMO),
]  # fmt: skip
# Each says: to "Hi", with a system message before it where the format has one, "Hello!" was liked.
THUMBS: list[tuple[Format, dict[str, Any], bool]] = [
    ("kto", THUMB, False),
    ("kto_tag", {"instruction": "Hi", "input": "", "output": "Hello!", "kto_tag": True}, False),
    ("kto_tag", {"conversations": [HUMAN, GPT], "kto_tag": True}, False),
    ("kto_tag", {"messages": [SYSTEM, USER, GOOD], "label": True}, True),
    ("argilla", {"system": "Be kind.", "instruction": "Hi", "completion": "Hello!", "label": True}, True),
]
WITH_A_SYSTEM_MESSAGE: list[tuple[Format, dict[str, Any]]] = [
    ("openai", OPENAI | {"input": {"messages": [{"role": "developer", "content": "Be kind."}, USER]}}),
    ("nova", NOVA | {"system": [{"text": "Be kind."}]}),
    ("alpaca", ALPACA | {"system": "Be kind."}),
    ("sharegpt", SHAREGPT | {"system": "Be kind."}),
    ("sharegpt", SHAREGPT | {"conversations": [{"from": "system", "value": "Be kind."}, HUMAN]}),
    ("llama_factory_v1", {"chosen_messages": v1(SYSTEM, USER, GOOD), "rejected_messages": v1(SYSTEM, USER, BAD)}),
    ("argilla", {"system": "Be kind.", "instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"}),
    ("intel", {"system": "Be kind.", "question": "Hi", "chosen": "Hello!", "rejected": "What?"}),
    ("icr", {"system": "Be kind.", "input": "Hi", "chosen": "Hello!", "rejected": "What?"}),
    ("prompt_pairs", PAIR | {"system": "Be kind."}),
    ("chat_template", CHAT_TEMPLATE | {"messages": [SYSTEM, USER]}),
    ("nemo_rl", NEMO | {"context": [SYSTEM, USER]}),
]


def refusal(fields: dict[str, Any], format: Format | None = None) -> tuple[str | None, str]:
    """The field and the reason of a row that must not give a preference."""
    with pytest.raises(RowError) as raised:
        preference(1, fields, format)
    return raised.value.field, raised.value.reason
