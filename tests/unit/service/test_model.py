"""Which base models are refused before anything is started, and why."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import model
from service.errors import BadRequest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The files that a causal language model has; their content is only looked at as far as it must be."""
    directory = tmp_path / "model"
    directory.mkdir()
    _write(directory / "config.json", {"architectures": ["Qwen3ForCausalLM"]})
    _write(directory / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    (directory / "model.safetensors").touch()
    return directory


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_a_directory_is_taken_as_it_is_and_made_absolute(directory: Path) -> None:
    with contextlib.chdir(directory.parent):
        assert model.resolve("model") == directory.resolve()
    assert model.resolve(str(directory)) == directory.resolve()


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_the_chat_template_may_lie_in_a_file_of_its_own(directory: Path, file: str) -> None:
    _write(directory / "tokenizer_config.json", {})
    (directory / file).touch()
    assert model.resolve(str(directory)) == directory.resolve()


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
    "config is not UTF-8": (lambda d: (d / "config.json").write_bytes(b"\xff"), "config.json is not JSON"),
    "config is a list": (lambda d: _write(d / "config.json", []), "config.json is not a JSON object"),
    "no causal language model": (
        lambda d: _write(d / "config.json", {"architectures": ["BertForMaskedLM"]}),
        r"\['BertForMaskedLM'\] is not a causal language model",
    ),
    "no architecture": (lambda d: _write(d / "config.json", {}), "is not a causal language model"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no \*.safetensors weights"),
    "only pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "pickled weights are never loaded",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer_config.json").unlink(), "has no tokenizer"),
    "tokenizer's config is not JSON": (
        lambda d: (d / "tokenizer_config.json").write_text("{"),
        "tokenizer_config.json is not JSON",
    ),
    "no chat template": (lambda d: _write(d / "tokenizer_config.json", {}), "no chat template"),
}


@pytest.mark.parametrize(("spoil", "why"), SPOILED.values(), ids=SPOILED.keys())
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(
    directory: Path, spoil: Callable[[Path], Any], why: str
) -> None:
    spoil(directory)
    with pytest.raises(BadRequest, match=why) as refused:
        model.resolve(str(directory))
    assert (refused.value.param, refused.value.code) == ("model.name", "model_not_loadable")
    assert str(directory) in refused.value.message


@pytest.mark.parametrize("name", ["/no/such/folder", "not a name", "a//b", "-"])
def test_what_is_neither_a_directory_nor_a_name_on_the_hub_is_refused(name: str) -> None:
    """The hub's client refuses these names by itself, without a network."""
    with pytest.raises(BadRequest, match="it is no directory here") as refused:
        model.resolve(name)
    assert name in refused.value.message
    assert "\n" not in refused.value.message
