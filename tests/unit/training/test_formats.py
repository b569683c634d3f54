"""Formats: what a row of each says, how they are told apart, and of every bad row the field and the reason."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format_rows import (
    ALPACA,
    BAD,
    GOOD,
    HH,
    NECTAR,
    OPENAI,
    PAIR,
    PAIRS,
    SHAREGPT,
    SYSTEM,
    THUMB,
    THUMBS,
    USER,
    WITH_A_SYSTEM_MESSAGE,
    refusal,
)
from training.formats import KNOWN_FIELDS, SHAPES, Format, Preference, RowError, preference, recognise


def said(found: Preference) -> tuple[Any, ...]:
    return found.format, found.messages, found.chosen, found.rejected


@pytest.mark.parametrize(("format", "fields"), PAIRS)
def test_a_pair_says_the_same_in_every_format(format: Format, fields: dict[str, Any]) -> None:
    assert said(preference(7, fields)) == (format, [USER], "Hello!", "What?")
    assert preference(7, fields, format) == preference(7, fields)


@pytest.mark.parametrize(("format", "fields"), WITH_A_SYSTEM_MESSAGE)
def test_a_system_message_is_part_of_the_prompt_however_it_is_written(format: Format, fields: dict[str, Any]) -> None:
    assert said(preference(1, fields)) == (format, [SYSTEM, USER], "Hello!", "What?")


@pytest.mark.parametrize(("format", "fields", "has_system"), THUMBS)
def test_a_thumb_says_the_same_in_every_format(format: Format, fields: dict[str, Any], has_system: bool) -> None:
    prompt, label = [SYSTEM, USER] if has_system else [USER], "kto_tag" if "kto_tag" in fields else "label"
    assert said(preference(1, fields)) == (format, prompt, "Hello!", None)
    assert said(preference(1, fields | {label: False})) == (format, prompt, None, "Hello!")
    assert refusal(fields | {label: "yes"}) == (label, "must be true or false, not 'yes'")


def test_every_format_is_tested_and_has_a_shape() -> None:
    tested = {format for format, *_ in (*PAIRS, *THUMBS, *WITH_A_SYSTEM_MESSAGE)}
    assert tested == {*get_args(Format)} == {*SHAPES}


# --- details of formats -------------------------------------------------------------------------------


def test_instruction_input_and_history_of_alpaca_are_one_conversation() -> None:
    found = preference(1, ALPACA | {"instruction": "Translate", "input": "Guten Tag", "history": [["Hi", "Hello!"]]})
    assert found.messages == [USER, GOOD, {"role": "user", "content": "Translate\nGuten Tag"}]


def test_a_dialogue_may_have_many_turns_and_white_space_around_them() -> None:
    common = "\n\nHuman: Hi \n\nAssistant:Hello!\n\nHuman: And\n\nyou?\n\nAssistant:"
    found = preference(1, {"chosen": f"{common} Fine.\n", "rejected": f"{common}  No."})
    assert found.messages == [USER, GOOD, {"role": "user", "content": "And\n\nyou?"}]
    assert (found.chosen, found.rejected) == ("Fine.", "No.")


def test_answers_that_begin_alike_do_not_lengthen_the_prompt_of_a_dialogue() -> None:
    common = "\n\nHuman: Hi\n\nAssistant: I think"
    found = preference(1, {"chosen": f"{common} so.", "rejected": f"{common} not."})
    assert (found.messages, found.chosen, found.rejected) == ([USER], "I think so.", "I think not.")


def test_a_dialogue_that_goes_on_after_the_answers_differ_is_refused() -> None:
    longer = HH["chosen"] + "\n\nHuman: Thanks\n\nAssistant: Bye"
    assert refusal(HH | {"chosen": longer}) == ("chosen", "must end in exactly one assistant message after the prompt")


def test_of_ranked_answers_the_best_is_paired_with_the_same_one_of_the_worse_whatever_their_order() -> None:
    answers = [{"answer": f"answer {rank}", "rank": float(rank)} for rank in range(1, 8)]
    rows = [NECTAR | {"answers": answers[cut:] + answers[:cut]} for cut in range(7)]
    found = {(said.chosen, said.rejected) for said in (preference(1, row) for row in rows)}
    ((chosen, rejected),) = found
    assert chosen == "answer 1"
    others = {
        preference(1, NECTAR | {"answers": [{"answer": f"other {n}", "rank": 1}, *answers[1:]]}).rejected
        for n in range(20)
    }
    assert len(others) > 2, "which of the worse is as good as chance"
    assert rejected in {answer["answer"] for answer in answers[1:]}


@pytest.mark.parametrize(
    "answers",
    [[], [{"answer": "a", "rank": 1}], [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}],
     [{"answer": "a", "rank": 1}, {"answer": "a", "rank": 2}]],
)  # fmt: skip
def test_ranked_answers_of_which_none_is_worse_give_no_pair(answers: list[dict[str, Any]]) -> None:
    assert refusal(NECTAR | {"answers": answers}) == ("answers", "no answer is worse than the best one")


def test_several_parts_of_text_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    asked = {"messages": [{"role": "user", "content": parts}]}
    assert preference(1, OPENAI | {"input": asked}).messages == [{"role": "user", "content": "Hi\nthere"}]


# --- which format -------------------------------------------------------------------------------------


def test_the_format_of_a_file_is_that_of_most_of_its_first_rows() -> None:
    assert str(recognise([OPENAI] * 3)) == "openai (3 of 3 first rows)"
    assert str(recognise([THUMB, PAIR, PAIR])) == "trl (2 of 3 first rows)"
    assert str(recognise([{"text": "x"}, {}])) == "none that is known (2 first rows)"
    assert str(recognise([PAIR, OPENAI], "openai")) == "openai (as asked for, 1 of 2 first rows)"


def test_rows_of_the_same_family_may_be_mixed_and_others_are_faults() -> None:
    trl = recognise([PAIR])
    assert trl.preference(1, THUMB).format == "kto"
    assert trl.preference(1, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}).format == "trl_implicit"
    for other in (OPENAI, HH, SHAREGPT):
        with pytest.raises(RowError, match="not trl"):
            trl.preference(1, other)
    with pytest.raises(RowError, match="its format is trl, not openai"):
        recognise([OPENAI]).preference(1, PAIR)


def test_a_format_that_is_asked_for_takes_no_other_of_its_family() -> None:
    with pytest.raises(RowError, match="its format is kto, not trl"):
        recognise([PAIR], "trl").preference(1, THUMB)


def test_a_file_in_no_known_format_says_so_row_by_row() -> None:
    with pytest.raises(RowError, match="none of the known formats: it has text"):
        recognise([{"text": "x"}]).preference(1, {"text": "x"})


# --- whatever comes -----------------------------------------------------------------------------------

_WORDS = (
    "user",
    "assistant",
    "human",
    "gpt",
    "Hi",
    "\n\nHuman: Hi\n\nAssistant: Ho",
    "preferred",
    "text",
    "\ud83d",
    "",
)
_NAMES = ("role", "content", "from", "value", "text", "type", "rank", "answer", "completion", "response",
          "overall_score", "candidates", "preferenceLabel", "messages")  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*sorted(KNOWN_FIELDS), "other"]), _VALUES))
def test_no_row_whatever_gives_anything_but_a_preference_or_a_row_error(fields: dict[str, Any]) -> None:
    for format in (None, *get_args(Format)):
        assert_a_preference_or_a_row_error(fields, format)


@given(st.data(), st.sampled_from([fields for _, fields in (*PAIRS, *WITH_A_SYSTEM_MESSAGE)]))
def test_a_good_row_that_is_damaged_anywhere_is_a_row_error_or_another_preference(
    data: st.DataObject, fields: dict[str, Any]
) -> None:
    damaged = json.loads(json.dumps(fields))
    place = damaged
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(_VALUES)
            break
        place = place[key]
    assert_a_preference_or_a_row_error(damaged, None)


def assert_a_preference_or_a_row_error(fields: dict[str, Any], format: Format | None) -> None:
    try:
        found = preference(1, fields, format)
    except RowError:
        return
    assert found.messages[-1]["role"] == "user"
    assert found.chosen != found.rejected
    assert all(message["content"].strip() for message in found.messages)
