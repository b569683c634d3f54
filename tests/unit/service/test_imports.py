from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.imports import LineFault, parse

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
LINE = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def _fault(line: Any) -> LineFault:
    """Of one line that must not give a pair."""
    pairs, faults = parse([line if isinstance(line, (str, bytes)) else json.dumps(line)])
    assert pairs == []
    (fault,) = faults
    assert fault.line == 1
    return fault


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [BAD]},
    ],
    ids=["strings", "messages", "full conversations", "implicit prompt", "mixed"],
)
def test_all_spellings_of_a_preference_are_the_same_pair(line: dict[str, Any]) -> None:
    (pair,), faults = parse([json.dumps(line)])
    assert faults == []
    assert (pair.messages, pair.chosen, pair.rejected) == ((USER,), "Hello!", "What?")
    assert pair.id == parse([json.dumps(LINE)])[0][0].id


def test_an_implicit_prompt_is_all_that_both_conversations_share() -> None:
    shared = [{"role": "system", "content": "Be kind."}, USER, GOOD, {"role": "user", "content": "Bye"}]
    (pair,), _ = parse([json.dumps({"chosen": [*shared, GOOD], "rejected": [*shared, BAD]})])
    assert list(pair.messages) == shared


def test_the_id_depends_on_the_content_alone() -> None:
    (pair,), _ = parse([json.dumps(LINE)])
    (same,), _ = parse([json.dumps(dict(reversed(LINE.items())), indent=None, separators=(" ,", " : "))])
    (swapped,), _ = parse([json.dumps(LINE | {"chosen": "What?", "rejected": "Hello!"})])
    assert pair == same
    assert pair.id != swapped.id


def test_good_lines_keep_their_order_and_bad_ones_their_numbers() -> None:
    other = json.dumps(LINE | {"chosen": "Good day!"})
    pairs, faults = parse([json.dumps(LINE) + "\n", "\n", "{", other.encode() + b"\r\n", "[]"])
    assert [pair.chosen for pair in pairs] == ["Hello!", "Good day!"]
    assert [fault.line for fault in faults] == [3, 5]


def test_a_repeated_line_names_the_first() -> None:
    pairs, faults = parse(["", json.dumps(LINE), json.dumps({"chosen": [USER, GOOD], "rejected": [USER, BAD]})])
    assert len(pairs) == 1
    assert faults == [LineFault(line=3, field=None, reason="duplicate of line 2")]


def test_a_byte_order_mark_is_no_fault() -> None:
    pairs, _ = parse([b"\xef\xbb\xbf" + json.dumps(LINE).encode()])
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "Hi",', "not valid JSON: Expecting property name"),
        ('{"prompt": NaN}}', "not valid JSON: Extra data at character 16"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ("1" * 10_000, "a number with too many digits"),
        (b'{"prompt": "\xff"}', "not UTF-8 text (byte 13 of the line)"),
        ('"text"', "not a JSON object"),
        ("null", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_json_object_says_so(line: str | bytes, reason: str) -> None:
    fault = _fault(line)
    assert fault.field is None
    assert reason in fault.reason


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (LINE | {"score": 1}, "score", "unknown field"),
        ({"prompt": "Hi", "chosen": "Hello!"}, "rejected", "missing"),
        ({"prompt": "Hi", "rejected": "What?"}, "chosen", "missing"),
        ({"chosen": "Hello!", "rejected": "What?"}, "prompt", "missing"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD]}, "prompt", "missing"),
        (LINE | {"chosen": 7}, "chosen", "must be a string or a list of messages"),
        (LINE | {"prompt": None}, "prompt", "must be a string or a list of messages"),
        (LINE | {"prompt": []}, "prompt", "empty list"),
        (LINE | {"prompt": ["Hi"]}, "prompt.0", "must be a message"),
        (LINE | {"prompt": [USER | {"name": "ada"}]}, "prompt.0", "must be a message"),
        (LINE | {"prompt": [{"role": "user"}]}, "prompt.0", "must be a message"),
        (LINE | {"prompt": [USER, {"role": "robot", "content": "x"}]}, "prompt.1.role", "unknown role"),
        (LINE | {"prompt": [{"role": ["user"], "content": "x"}]}, "prompt.0.role", "unknown role"),
        (LINE | {"prompt": [{"role": "user", "content": 7}]}, "prompt.0.content", "must be a string"),
        (LINE | {"prompt": " "}, "prompt", "empty text"),
        (LINE | {"chosen": ""}, "chosen", "empty text"),
        (LINE | {"rejected": "\n\t"}, "rejected", "empty text"),
        (LINE | {"chosen": [GOOD | {"content": ""}]}, "chosen.0.content", "empty text"),
        (LINE | {"chosen": "a\0b"}, "chosen", "NUL"),
        (LINE | {"chosen": "half \ud83d"}, "chosen", "surrogate"),
        (LINE | {"rejected": "Hello!"}, "rejected", "the same as chosen"),
        (LINE | {"rejected": [GOOD]}, "rejected", "the same as chosen"),
        (LINE | {"rejected": [USER, GOOD]}, "rejected", "the same as chosen"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "rejected", "the same as chosen"),
        (LINE | {"prompt": [USER, GOOD]}, "prompt", "must be the user's"),
        (LINE | {"prompt": [{"role": "system", "content": "Be kind."}]}, "prompt", "must be the user's"),
        (LINE | {"chosen": [GOOD, BAD]}, "chosen", "exactly one assistant message"),
        (LINE | {"rejected": [USER]}, "rejected", "exactly one assistant message"),
        (LINE | {"chosen": [USER, USER, GOOD]}, "chosen", "exactly one assistant message"),
    ],
)
def test_a_faulty_line_names_the_field_and_the_reason(line: dict[str, Any], field: str, reason: str) -> None:
    fault = _fault(line)
    assert fault.field == field
    assert reason in fault.reason


_JSON = st.recursive(
    st.none() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "Hi"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "role", "content"]), inner)
    ),
    max_leaves=10,
)


@given(st.lists(st.text(max_size=9) | st.binary(max_size=9) | _JSON.map(json.dumps), max_size=5))
def test_no_line_whatever_breaks_the_import(lines: list[str | bytes]) -> None:
    pairs, faults = parse(lines)
    assert len(pairs) + len(faults) <= len(lines)
    assert all(pair.chosen != pair.rejected for pair in pairs)
