"""Invariant 5: an adapter directory is served only if every hash matches and everything in it can be served."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serving.adapters import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    base_fingerprint,
    fetch,
    sha256_of,
    tokenizer_fingerprint,
    verify,
)
from serving.contracts import AdapterFiles
from serving.errors import AdapterRefused, AdapterUnreachable
from tests.adapter_files import (
    FINGERPRINTS,
    HIDDEN,
    MODULE,
    change_config,
    change_manifest,
    change_weights,
    flip_byte,
    read_json,
    replace_weights,
    write_adapter,
)
from training import adapter as trained
from training.contracts import LoraSpec


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return write_adapter(tmp_path / "published")


def _verify(files: AdapterFiles, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "name": files.name,
        "base": FINGERPRINTS.base_model,
        "tokenizer": FINGERPRINTS.tokenizer,
        "max_rank": 8,
    }
    return verify(Path(files.directory), **(asked | changes))


def test_a_whole_adapter_is_verified_and_its_manifest_returned(files: AdapterFiles) -> None:
    manifest = _verify(files, manifest_sha256=files.manifest_sha256)
    assert manifest == read_json(Path(files.directory) / MANIFEST)
    assert manifest["name"] == files.name


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"base": "0" * 64},
            r"another base model \(bbbbbbbbbbbb\) than the one served \(000000000000\): name .* model.name",
        ),
        ({"tokenizer": "0" * 64}, r"another tokenizer or chat template \(777777777777\) .* \(000000000000\): name"),
        ({"max_rank": 7}, "rank 8 is not between 1 and max_lora_rank = 7"),
        ({"name": "policy-0002-00000000"}, "its manifest names 'policy-0001-"),
        ({"manifest_sha256": "0" * 64}, "not the published one"),
    ],
    ids=["base", "tokenizer", "rank", "name", "manifest"],
)
def test_an_adapter_that_is_not_the_one_asked_for_is_refused(
    files: AdapterFiles, asked: dict[str, Any], why: str
) -> None:
    with pytest.raises(AdapterRefused, match=why):
        _verify(files, **asked)


def _truncate(directory: Path) -> None:
    weights = directory / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


def _link_weights(directory: Path) -> None:
    outside = directory.parent / "outside"
    shutil.move(directory / WEIGHTS, outside)
    (directory / WEIGHTS).symlink_to(outside)


def _folder_for_config(directory: Path) -> None:
    (directory / CONFIG).unlink()
    (directory / CONFIG).mkdir()


def _put(value: float) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        def change(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            weights[f"{MODULE}.lora_B.weight"][0, 0] = value
            return weights

        change_weights(directory, change)

    return spoil


def _wider(directory: Path) -> None:
    name = f"{MODULE}.lora_A.weight"
    change_weights(directory, lambda weights: weights | {name: np.zeros((16, HIDDEN), np.float32)})


def _integers(directory: Path) -> None:
    change_weights(directory, lambda weights: {name: tensor.astype(np.int32) for name, tensor in weights.items()})


def _embedding(directory: Path) -> None:
    change_weights(
        directory, lambda weights: weights | {"base_model.model.lm_head.weight": np.zeros((4, HIDDEN), np.float32)}
    )


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated weights": (_truncate, "adapter_model.safetensors does not hash"),
    "flipped byte of the weights": (lambda d: flip_byte(d / WEIGHTS), "adapter_model.safetensors does not hash"),
    "flipped byte of the config": (lambda d: flip_byte(d / CONFIG), "adapter_config.json does not hash"),
    "config was edited": (lambda d: (d / CONFIG).write_text("{}"), "adapter_config.json does not hash"),
    "extra pickle": (lambda d: (d / "adapter_model.bin").touch(), "its files are .*adapter_model.bin"),
    "extra hidden file": (lambda d: (d / ".notes").touch(), "its files are .*.notes"),
    "extra code": (lambda d: (d / "modeling.py").touch(), "its files are"),
    "missing weights": (lambda d: (d / WEIGHTS).unlink(), "its files are"),
    "missing config": (lambda d: (d / CONFIG).unlink(), "its files are"),
    "missing manifest": (lambda d: (d / MANIFEST).unlink(), "its files are"),
    "no directory": (shutil.rmtree, "its directory does not exist"),
    "symbolic link": (_link_weights, "not a plain file"),
    "folder in place of a file": (_folder_for_config, "not a plain file"),
    "manifest is not JSON": (lambda d: (d / MANIFEST).write_text("{"), "manifest.json is not JSON"),
    "manifest is not UTF-8": (lambda d: (d / MANIFEST).write_bytes(b"\xff{}"), "manifest.json is not JSON"),
    "manifest is a list": (lambda d: (d / MANIFEST).write_text("[]"), "manifest.json is not a JSON object"),
    "newer schema": (lambda d: change_manifest(d, schema_version=2), "manifest schema 2 is not 1"),
    "no schema": (lambda d: change_manifest(d, schema_version=None), "manifest schema None is not 1"),
    "manifest names no hashes": (lambda d: change_manifest(d, files={}), "does not hash"),
    "manifest's hashes are a list": (lambda d: change_manifest(d, files=[]), "does not hash"),
    "rank too high": (lambda d: change_config(d, r=16), "rank 16 is not between 1 and"),
    "rank zero": (lambda d: change_config(d, r=0), "rank 0 is not between"),
    "rank is text": (lambda d: change_config(d, r="8"), "rank '8' is not between"),
    "DoRA": (lambda d: change_config(d, use_dora=True), "DoRA, bias and modules_to_save"),
    "bias": (lambda d: change_config(d, bias="lora_only"), "DoRA, bias and modules_to_save"),
    "modules_to_save": (lambda d: change_config(d, modules_to_save=["lm_head"]), "DoRA, bias and modules_to_save"),
    "another PEFT method": (lambda d: change_config(d, peft_type="IA3"), "no LoRA adapter"),
    "rank per module": (lambda d: change_config(d, rank_pattern={"q_proj": 64}), "one rank"),
    "alpha per module": (lambda d: change_config(d, alpha_pattern={"q_proj": 64}), "one rank"),
    "tensors of another rank": (_wider, "do not have the rank 8"),
    "tensors of integers": (_integers, "its tensors are I32; write them as F32"),
    "NaN": (_put(float("nan")), "not all finite"),
    "infinity": (_put(float("inf")), "not all finite"),
    "no tensors": (lambda d: change_weights(d, lambda _: {}), "holds no weights"),
    "a whole layer": (_embedding, "not LoRA's A and B"),
    "weights are no safetensors": (lambda d: replace_weights(d, b"PK\3\4 pickled"), "is not readable"),
    "empty weights": (lambda d: replace_weights(d, b""), "is not readable"),
}


@pytest.mark.parametrize(("spoil", "why"), SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_adapter_is_refused_with_its_fault(
    files: AdapterFiles, spoil: Callable[[Path], Any], why: str
) -> None:
    spoil(Path(files.directory))
    with pytest.raises(AdapterRefused, match=why) as refused:
        _verify(files)
    assert files.name in str(refused.value)


def test_a_large_finite_weight_passes(files: AdapterFiles) -> None:
    _put(3e38)(Path(files.directory))
    _verify(files)


def test_what_training_writes_is_what_serving_accepts(tmp_path: Path) -> None:
    """The seam of both packages, held from both sides."""
    weights = {
        f"{MODULE}.lora_A.weight": np.ones((8, HIDDEN), np.float32),
        f"{MODULE}.lora_B.weight": np.ones((HIDDEN, 8), np.float32),
    }
    lineage = trained.Lineage(
        ordinal=3, parent=None, round=2, fingerprints=FINGERPRINTS, pair_digest="d" * 64, training={"steps": 4}
    )
    manifest = trained.write_adapter(tmp_path, weights, LoraSpec(), ["q_proj"], "/models/base", lineage)
    files = AdapterFiles(name=manifest.name, directory=str(tmp_path / "adapter"), manifest_sha256="")
    assert _verify(files)["training"] == {"steps": 4}


# --- the copy on this machine -------------------------------------------------------------------------


def test_a_fetched_copy_is_whole_and_no_link_to_the_original(files: AdapterFiles, tmp_path: Path) -> None:
    copy = fetch(files, tmp_path / "cache")
    assert copy == tmp_path / "cache" / files.name
    shutil.rmtree(files.directory)
    verify(copy, name=files.name, base=FINGERPRINTS.base_model, tokenizer=FINGERPRINTS.tokenizer, max_rank=8)


def test_a_copy_that_is_here_is_not_fetched_again(files: AdapterFiles, tmp_path: Path) -> None:
    copy = fetch(files, tmp_path)
    shutil.rmtree(files.directory)
    assert fetch(files, tmp_path) == copy


def test_only_the_files_of_an_adapter_are_fetched(files: AdapterFiles, tmp_path: Path) -> None:
    (Path(files.directory) / "huge.bin").touch()
    assert {entry.name for entry in fetch(files, tmp_path / "cache").iterdir()} == {WEIGHTS, CONFIG, MANIFEST}


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG, MANIFEST])
def test_an_incomplete_original_is_refused_and_leaves_nothing(
    files: AdapterFiles, tmp_path: Path, missing: str
) -> None:
    (Path(files.directory) / missing).unlink()
    with pytest.raises(AdapterRefused, match=missing):
        fetch(files, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


class Away(MemoryFileSystem):
    """An object store that does not answer."""

    protocol = "never"

    def get_file(self, *args: Any, **options: Any) -> None:
        raise RuntimeError("nobody listens")


fsspec.register_implementation("never", Away, clobber=True)


def test_a_place_that_does_not_answer_says_nothing_of_the_adapter(files: AdapterFiles, tmp_path: Path) -> None:
    elsewhere = files.model_copy(update={"directory": "never://bucket/adapter"})
    with pytest.raises(AdapterUnreachable, match="RuntimeError: nobody listens"):
        fetch(elsewhere, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_original_may_be_named_by_url(files: AdapterFiles, tmp_path: Path) -> None:
    by_url = files.model_copy(update={"directory": f"file://{files.directory}"})
    assert sha256_of(fetch(by_url, tmp_path / "cache") / WEIGHTS) == sha256_of(Path(files.directory) / WEIGHTS)


# --- fingerprints -------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        (directory / name).write_text(name)
    return directory


def test_fingerprints_follow_the_content_of_the_model_and_nothing_else(model: Path) -> None:
    def lines(*names: str) -> str:
        text = "".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in names)
        return hashlib.sha256(text.encode()).hexdigest()

    assert base_fingerprint(model) == lines("config.json", "model.safetensors")
    assert tokenizer_fingerprint(model) == lines("chat_template.jinja", "tokenizer.json")
    (model / "README.md").write_text("changed")
    assert base_fingerprint(model) == lines("config.json", "model.safetensors")


def test_another_chat_template_is_another_tokenizer_but_the_same_base(model: Path) -> None:
    base, tokenizer = base_fingerprint(model), tokenizer_fingerprint(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert base_fingerprint(model) == base
    assert tokenizer_fingerprint(model) != tokenizer
