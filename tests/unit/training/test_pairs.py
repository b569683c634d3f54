"""Served rows are trained on as recorded; imported ones under the chat template, ended as the engine would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tiny_models import EOS
from training.contracts import REPLAY, TRAIN
from training.errors import SnapshotInvalid
from training.pairs import Pair, Thumb, end_of_turn, render, shorten
from training.snapshot import SnapshotRow

SERVED = SnapshotRow("s", TRAIN, (7, 8), (9, EOS), (10, 11))
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital?"}]


@pytest.fixture
def tokenizer(models: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(models["llama"])


def imported(messages: list[dict[str, str]] = MESSAGES) -> SnapshotRow:
    return SnapshotRow("i", TRAIN, messages=json.dumps(messages), chosen_text="Paris.", rejected_text="I think so")


def test_recorded_token_ids_are_kept_as_they_are(tokenizer: Any) -> None:
    assert render(SERVED, tokenizer, EOS) == Pair("s", (7, 8), (9, EOS), (10, 11))


def test_a_row_with_one_answer_is_a_thumb(tokenizer: Any) -> None:
    up, down = replace(SERVED, rejected_token_ids=None), replace(SERVED, chosen_token_ids=None)
    assert render(up, tokenizer, EOS) == Thumb("s", (7, 8), (9, EOS), up=True)
    assert render(down, tokenizer, EOS) == Thumb("s", (7, 8), (10, 11), up=False)
    thumb, pair = render(replace(imported(), chosen_text=None), tokenizer, EOS), render(imported(), tokenizer, EOS)
    assert isinstance(pair, Pair)
    assert thumb == Thumb("i", pair.prompt, pair.rejected, up=False)


def test_a_correction_is_encoded_beside_recorded_tokens_and_ends_its_turn(tokenizer: Any) -> None:
    corrected = replace(SERVED, chosen_token_ids=None, chosen_text="Paris.")
    pair, of_import = render(corrected, tokenizer, EOS), render(imported(), tokenizer, EOS)
    assert isinstance(of_import, Pair)
    assert pair == Pair("s", (7, 8), of_import.chosen, (10, 11))
    assert render(replace(corrected, rejected_token_ids=None), tokenizer, EOS) == Thumb(
        "s", (7, 8), of_import.chosen, up=True
    )


def test_a_row_keeps_its_weight(tokenizer: Any) -> None:
    rows = SERVED, replace(SERVED, chosen_token_ids=None), imported(), replace(imported(), rejected_text=None)
    assert [render(replace(row, weight=0.3), tokenizer, EOS).weight for row in rows] == [0.3] * 4


def test_what_an_earlier_round_has_learned_is_known_as_such(tokenizer: Any) -> None:
    assert not render(SERVED, tokenizer, EOS).replay
    assert render(replace(SERVED, origin=REPLAY), tokenizer, EOS).replay
    assert render(replace(SERVED, origin=REPLAY, chosen_token_ids=None), tokenizer, EOS).replay


def test_imported_text_is_rendered_as_the_server_would_and_its_answers_end(tokenizer: Any) -> None:
    pair = render(imported(), tokenizer, EOS)
    assert isinstance(pair, Pair)
    served = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert list(pair.prompt) == served
    assert tokenizer.decode(pair.chosen) == "Paris.<|eos|>"
    assert pair.rejected[-1] == EOS
    whole = tokenizer.apply_chat_template(
        [*MESSAGES, {"role": "assistant", "content": "Paris."}], add_generation_prompt=False, return_dict=False
    )
    assert [*pair.prompt, *pair.chosen] == whole


def test_a_turn_ends_with_the_stop_token_that_the_template_writes(tokenizer: Any) -> None:
    assert end_of_turn(tokenizer, {EOS}) == EOS
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|user|><|eos|>{% endfor %}"
    assert end_of_turn(tokenizer, {user, EOS}) == user
    assert end_of_turn(tokenizer, {EOS}) == EOS
    assert end_of_turn(tokenizer, set()) == EOS


def test_messages_that_the_template_refuses_are_named(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SnapshotInvalid, match="'i': the chat template refuses its messages: roles must alternate"):
        render(imported(), tokenizer, EOS)


TURNS = [
    ("system", "Be brief."),
    ("assistant", "Welcome!"),
    ("user", "One?"),
    ("assistant", "Two."),
    ("user", "Three?"),
    ("assistant", "Four."),
    ("user", "Five?"),
]
LONG = [{"role": role, "content": content} for role, content in TURNS]


def contents(row: SnapshotRow | None) -> list[str]:
    assert row is not None
    return [message["content"] for message in json.loads(row.messages or "")]


def test_a_long_conversation_loses_its_oldest_turns_and_no_more_than_needed(tokenizer: Any) -> None:
    def tokens(messages: list[dict[str, str]]) -> int:
        return render(imported(messages), tokenizer, EOS).longest

    without_greeting, without_one, shortest = ([LONG[0], *LONG[start:]] for start in (2, 4, 6))
    for context in range(tokens(shortest), tokens(LONG)):
        shorter = shorten(imported(LONG), tokenizer, EOS, context)
        fitting = next(m for m in (without_greeting, without_one, shortest) if tokens(m) <= context)
        assert contents(shorter) == [message["content"] for message in fitting]
        assert shorter == replace(imported(LONG), messages=json.dumps(fitting))
    assert shorten(imported(LONG), tokenizer, EOS, tokens(shortest) - 1) is None
