"""Served pairs are trained on as recorded; imported ones under the chat template, ended as the engine would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tiny_models import EOS, VOCABULARY
from training.contracts import HELD_OUT, TRAIN
from training.errors import SnapshotInvalid
from training.pairs import Pair, end_of_turn, render, sort_out
from training.snapshot import SnapshotRow

SERVED = SnapshotRow("s", TRAIN, (7, 8), (9, EOS), (10, 11))
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital?"}]


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(models["llama"])


def imported(messages: list[dict[str, str]] = MESSAGES) -> SnapshotRow:
    return SnapshotRow("i", TRAIN, messages=json.dumps(messages), chosen_text="Paris.", rejected_text="I think so")


def test_recorded_token_ids_are_kept_as_they_are(tokenizer: Any) -> None:
    assert render(SERVED, tokenizer, EOS) == Pair("s", (7, 8), (9, EOS), (10, 11))


def test_imported_text_is_rendered_as_the_server_would_and_its_answers_end(tokenizer: Any) -> None:
    pair = render(imported(), tokenizer, EOS)
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


def test_messages_that_the_template_refuses_are_named(models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SnapshotInvalid, match="'i': the chat template refuses its messages: roles must alternate"):
        render(imported(), tokenizer, EOS)


def test_splits_are_parted_and_pairs_beyond_the_context_counted(tokenizer: Any) -> None:
    held_out = SnapshotRow("h", HELD_OUT, (7,), (9,), (10,))
    too_long = SnapshotRow("l", TRAIN, (7,) * 10, (9,), (10, 11))
    pairs = sort_out([SERVED, held_out, too_long], tokenizer, {EOS}, vocabulary=VOCABULARY, context=11)
    assert [pair.pair_id for pair in pairs.train] == ["s"]
    assert [pair.pair_id for pair in pairs.held_out] == ["h"]
    assert pairs.skipped == {"too_long": 1}


def test_a_token_the_model_does_not_have_is_named(tokenizer: Any) -> None:
    with pytest.raises(SnapshotInvalid, match="'s': token id 11, but the model has 11 tokens"):
        sort_out([SERVED], tokenizer, {EOS}, vocabulary=11, context=100)


def test_nothing_left_to_train_on_is_said(tokenizer: Any) -> None:
    with pytest.raises(SnapshotInvalid, match="no pair is left to train on: 1 in the snapshot, 1 of them too long"):
        sort_out([SERVED], tokenizer, {EOS}, vocabulary=VOCABULARY, context=3)
