"""Exports as those read them for whom they are made: TRL's own readers, and OpenAI's description of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer
from trl.data_utils import (
    is_conversational,
    maybe_apply_chat_template,
    maybe_extract_prompt,
    maybe_unpair_preference_dataset,
)

from service.exchange.exports import Exportable, ExportFormat, lines_of
from tests.tiny_models import build

PAIR = Exportable(
    "p",
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 2 + 2?"}],
    "It is four.", "Five 🙂\n", is_thumb=False,
)  # fmt: skip
THUMB = Exportable("t", [{"role": "user", "content": "Hi"}], None, "What?", is_thumb=True)

# https://developers.openai.com/api/docs/guides/direct-preference-optimization
_OUTPUT = {
    "type": "array", "minItems": 1, "maxItems": 1,
    "items": {"type": "object", "required": ["role", "content"], "additionalProperties": False,
              "properties": {"role": {"const": "assistant"}, "content": {"type": "string", "minLength": 1}}},
}  # fmt: skip
OPENAI = {
    "type": "object",
    "required": ["input", "preferred_output", "non_preferred_output"],
    "additionalProperties": False,
    "properties": {
        "input": {
            "type": "object", "required": ["messages"], "additionalProperties": False,
            "properties": {
                "messages": {"type": "array", "minItems": 1, "items": {
                    "type": "object", "required": ["role", "content"], "additionalProperties": False,
                    "properties": {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": {"type": "string"}},
                }},
                "tools": {"type": "array"},
                "parallel_tool_calls": {"type": "boolean"},
            },
        },
        "preferred_output": _OUTPUT,
        "non_preferred_output": _OUTPUT,
    },
}  # fmt: skip


def written(format: ExportFormat, folder: Path) -> Path:
    """As a file, because that is how others get it."""
    path = folder / "export.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for one in (PAIR, THUMB) for line in lines_of(one, format)))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(build("llama", tmp_path_factory.mktemp("llama")))


def dataset(path: Path) -> Dataset:
    found = Dataset.from_json(str(path), cache_dir=str(path.parent / "cache"))
    assert isinstance(found, Dataset)
    return found


def rows(found: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in found]


def test_trl_reads_our_pairs_as_its_own(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = rows(dataset(written("trl", tmp_path)))
    assert is_conversational(row)
    assert maybe_extract_prompt(row) == row
    prompt = tokenizer.apply_chat_template(PAIR.prompt, tokenize=False, add_generation_prompt=True)
    assert maybe_apply_chat_template(row, tokenizer) == {
        "prompt": prompt,
        "chosen": f"{PAIR.chosen}<|eos|>",
        "rejected": f"{PAIR.rejected}<|eos|>",
    }


def test_trl_reads_our_thumbs_as_its_own_and_makes_the_same_of_our_pairs(tokenizer: Any, tmp_path: Path) -> None:
    ours = rows(dataset(written("kto", tmp_path)))
    assert all(is_conversational(row) for row in ours)
    assert maybe_apply_chat_template(ours[2], tokenizer) == {
        "prompt": "<|user|>Hi<|eos|><|assistant|>", "completion": "What?<|eos|>", "label": False,
    }  # fmt: skip
    theirs = rows(maybe_unpair_preference_dataset(dataset(written("trl", tmp_path))))
    assert sorted(ours[:2], key=str) == sorted(theirs, key=str)


def test_openai_s_lines_are_as_its_documentation_says(tmp_path: Path) -> None:
    (line,) = written("openai", tmp_path).read_text().splitlines()
    Draft202012Validator(OPENAI).validate(json.loads(line))
