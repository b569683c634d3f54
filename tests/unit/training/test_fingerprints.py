"""Fingerprints see every file that changes what a model answers, and no other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.unit.training.conftest import MakeSpec
from training.contracts import Fingerprints
from training.errors import FingerprintMismatch
from training.fingerprints import fingerprints, require_same


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_definition(directory: Path) -> None:
    def line(name: str) -> str:
        return f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n"

    base = hashlib.sha256((line("config.json") + line("model.safetensors")).encode()).hexdigest()
    tokenizer = hashlib.sha256((line("chat_template.jinja") + line("tokenizer.json")).encode()).hexdigest()
    assert fingerprints(directory) == Fingerprints(base_model=base, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_the_base_models_digest_sees_its_files(name: str, directory: Path) -> None:
    before = fingerprints(directory)
    (directory / name).write_text("other")
    after = fingerprints(directory)
    assert (after.base_model != before.base_model, after.tokenizer) == (True, before.tokenizer)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "special_tokens_map.json"])
def test_the_tokenizers_digest_sees_its_files(name: str, directory: Path) -> None:
    before = fingerprints(directory)
    (directory / name).write_text("other")
    after = fingerprints(directory)
    assert (after.base_model, after.tokenizer != before.tokenizer) == (before.base_model, True)


def test_other_files_do_not_matter(directory: Path) -> None:
    before = fingerprints(directory)
    (directory / "README.md").write_text("other")
    assert fingerprints(directory) == before


@pytest.mark.parametrize("part", ["base_model", "tokenizer"])
def test_a_round_refuses_a_model_that_is_not_the_servers(part: str, make_spec: MakeSpec) -> None:
    spec = make_spec()
    require_same(spec)
    served = spec.fingerprints.model_copy(update={part: "0" * 64})
    with pytest.raises(FingerprintMismatch, match=f"{part} in .* the server's is 000000000000"):
        require_same(make_spec(fingerprints=served))
