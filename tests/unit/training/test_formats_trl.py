"""TRL's formats: every spelling, what is a prompt and what an answer, and of every bad row the field and the reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.format_rows import BAD, GOOD, HH, PAIR, SYSTEM, THUMB, USER, refusal
from training.formats import KNOWN_FIELDS, SHAPES, Format, Preference, RowError, json_object, preference


@pytest.mark.parametrize("prompt", ["Hi", [USER]])
@pytest.mark.parametrize("completion", ["Hello!", [GOOD], [USER, GOOD]])
def test_a_thumb_has_only_the_answer_that_was_liked_or_not(prompt: Any, completion: Any) -> None:
    fields = {"prompt": prompt, "completion": completion}
    assert preference(1, fields | {"label": True}) == Preference(1, "kto", [USER], "Hello!", None)
    assert preference(1, fields | {"label": False}) == Preference(1, "kto", [USER], None, "Hello!")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue.", "The sky is red.", "The sky is", (" blue.", " red.")),  # a space belongs to the answers
        ("a  b", "a  c", "a ", (" b", " c")),  # one of them, as in TRL
        ("The sky is blue.", "The sky is black.", "The sky is bl", ("ue.", "ack.")),
        ("1 + 1 = 2", "1 + 1 = 20", None, "chosen"),  # all of it would be the prompt; TRL takes a character less
        ("Hi there", "Hi ", None, "rejected"),
        ("Yes. ", "No.", None, "prompt"),  # TRL finds the prompt "Yes." in this, at index -1
        (" yes", " no", None, "prompt"),
        ("Hi", "Hi", None, "rejected"),
    ],
)
def test_an_implicit_prompt_of_strings_is_all_they_share(
    chosen: str, rejected: str, prompt: str | None, answers: Any
) -> None:
    fields = {"chosen": chosen, "rejected": rejected}
    if prompt is None:
        assert refusal(fields)[0] == answers
    else:
        found = preference(1, fields)
        assert (found.messages[0]["content"], (found.chosen, found.rejected)) == (prompt, answers)


def test_an_implicit_prompt_of_messages_is_all_that_both_conversations_share() -> None:
    shared = [SYSTEM, USER, GOOD, {"role": "user", "content": "Bye"}]
    assert preference(1, {"chosen": [*shared, GOOD], "rejected": [*shared, BAD]}).messages == shared


def test_a_string_prompt_beside_whole_conversations_does_not_hide_their_beginning() -> None:
    found = preference(1, {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]})
    assert found.messages == [SYSTEM, USER]


def test_fields_without_a_meaning_are_named() -> None:
    found = preference(1, PAIR | {"score_chosen": 8.0, "prompt_id": "x", "label": None, "tools": []})
    assert found.ignored == ("score_chosen", "prompt_id", "tools")
    whole = {"chosen": [USER, GOOD], "rejected": [USER, BAD], "prompt": "?"}
    assert preference(1, whole, "trl_implicit").ignored == ("prompt",)


def test_null_fields_count_as_absent_but_a_null_prompt_does_not() -> None:
    table_row = dict.fromkeys(KNOWN_FIELDS)
    assert preference(1, table_row | PAIR).format == "trl"
    assert preference(1, table_row | THUMB).format == "kto"
    assert preference(1, PAIR | {"prompt": [USER | {"tool_calls": None}]}).messages == [USER]
    assert refusal(PAIR | {"prompt": None}) == ("prompt", "must be a string or a list of messages")


@pytest.mark.parametrize(
    ("fields", "format"),
    [(PAIR, "kto"), (PAIR, "openai"), (THUMB, "trl"), (HH, "alpaca"), ({"text": "x"}, "nova")],
)
def test_a_forced_format_refuses_all_others(fields: dict[str, Any], format: Format) -> None:
    field, reason = refusal(fields, format)
    assert field is None
    assert f"not {format}" in reason or SHAPES[format] in reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "Hi",', "not valid JSON: Expecting property name"),
        (b'{"prompt": NaN}}', "not valid JSON: Extra data at character 16"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b"1" * 10_000, "a number with too many digits"),
        (b'{"prompt": "\xff"}', "not UTF-8 text (byte 13 of the line)"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"prompt,chosen,rejected", "not valid JSON"),
    ],
)
def test_a_line_that_is_no_json_object_says_so(line: bytes, reason: str) -> None:
    with pytest.raises(RowError) as raised:
        json_object(line)
    assert raised.value.field is None
    assert reason in raised.value.reason


def test_a_blank_line_and_a_byte_order_mark_are_no_faults() -> None:
    assert json_object(b" \r\n") is None
    assert json_object(b'\xef\xbb\xbf{"prompt": "Hi"}\n') == {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({}, None, "it has no field"),
        ({"messages": [USER]}, None, "none of the known formats: it has messages"),
        (PAIR | THUMB, None, "both a pair and a thumb"),
        (PAIR | {"tools": [{"name": "search"}]}, "tools", "not supported"),
        ({"prompt": "Hi", "chosen": "Hello!"}, "rejected", "missing"),
        ({"prompt": "Hi", "rejected": "What?"}, "chosen", "missing"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD]}, "prompt", "missing"),
        ({"chosen": "Hello!", "rejected": [GOOD]}, "rejected", "the same as chosen"),
        (PAIR | {"chosen": 7}, "chosen", "must be a string or a list of messages"),
        (PAIR | {"prompt": []}, "prompt", "empty list"),
        (PAIR | {"prompt": ["Hi"]}, "prompt.0", "must be a message"),
        (PAIR | {"prompt": [USER | {"name": "ada"}]}, "prompt.0", "must be a message"),
        (PAIR | {"prompt": [{"role": "user"}]}, "prompt.0", "must be a message"),
        (PAIR | {"prompt": [USER, {"role": "robot", "content": "x"}]}, "prompt.1.role", "unknown role"),
        (PAIR | {"prompt": [{"role": ["user"], "content": "x"}]}, "prompt.0.role", "unknown role"),
        (PAIR | {"prompt": [{"role": "user", "content": 7}]}, "prompt.0.content", "must be a string"),
        (PAIR | {"prompt": " "}, "prompt", "empty text"),
        (PAIR | {"chosen": ""}, "chosen", "empty text"),
        (PAIR | {"chosen": [GOOD | {"content": ""}]}, "chosen.0.content", "empty text"),
        (PAIR | {"chosen": "a\0b"}, "chosen", "NUL"),
        (PAIR | {"chosen": "half \ud83d"}, "chosen", "surrogate"),
        (PAIR | {"rejected": "Hello!"}, "rejected", "the same as chosen"),
        (PAIR | {"rejected": [USER, GOOD]}, "rejected", "the same as chosen"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "rejected", "the same as chosen"),
        (PAIR | {"prompt": [USER, GOOD]}, "prompt", "must be the user's"),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, SYSTEM]}, "prompt", "must be the user's"),
        (PAIR | {"chosen": [GOOD, BAD]}, "chosen", "exactly one assistant message"),
        (PAIR | {"rejected": [USER]}, "rejected", "exactly one assistant message"),
        ({"prompt": "Hi", "completion": "Hello!"}, "label", "missing"),
        (THUMB | {"label": "true"}, "label", "must be true or false, not 'true'"),
        (THUMB | {"label": 1}, "label", "must be true or false, not 1"),
        ({"prompt": "Hi", "label": True}, "completion", "missing"),
        ({"completion": "Hello!", "label": True}, "prompt", "missing"),
        (THUMB | {"completion": " "}, "completion", "empty text"),
        (THUMB | {"completion": [USER]}, "completion", "exactly one assistant message"),
        (THUMB | {"prompt": [SYSTEM]}, "prompt", "must be the user's"),
    ],
)
def test_a_bad_row_names_the_field_and_the_reason(fields: dict[str, Any], field: str | None, reason: str) -> None:
    found = refusal(fields)
    assert found[0] == field
    assert reason in found[1]
