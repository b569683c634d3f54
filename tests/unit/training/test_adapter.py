"""The adapter directory: complete or absent, closed by its manifest, loadable by PEFT and by vLLM's rules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from peft import PeftConfig
from safetensors.numpy import load_file

from training.adapter import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    Lineage,
    Manifest,
    changed,
    read_adapter,
    read_parent,
    require_sound,
    serialise,
    write_adapter,
)
from training.contracts import Fingerprints, LoraSpec, ParentAdapter
from training.errors import AdapterInvalid, NotFinite

LORA = LoraSpec(rank=4, alpha=8)
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"
LINEAGE = Lineage(
    ordinal=7,
    parent=ParentAdapter(name="policy-0006-00000000", directory="/adapters/6"),
    round=3,
    fingerprints=Fingerprints(base_model="b" * 64, tokenizer="c" * 64),
    pair_digest="d" * 64,
    training={"beta": 0.1},
)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {B: draw.normal(size=(6, 4)).astype(np.float32), A: draw.normal(size=(4, 5)).astype(np.float32)}


def write(out: Path, tensors: dict[str, np.ndarray] | None = None) -> Manifest:
    return write_adapter(out, tensors or weights(), LORA, ["q_proj"], "/models/base", LINEAGE)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"adapter"}
    assert {entry.name for entry in (tmp_path / "adapter").iterdir()} == {WEIGHTS, CONFIG, MANIFEST}
    found, tensors = read_adapter(tmp_path / "adapter")
    assert found == manifest
    assert not changed(weights(), tensors)
    assert manifest.name == f"policy-0007-{manifest.files[WEIGHTS][:8]}"
    assert (manifest.parent, manifest.round, manifest.rank) == ("policy-0006-00000000", 3, 4)


def test_the_same_weights_have_the_same_bytes_in_any_order_and_others_do_not() -> None:
    reversed_order = dict(reversed(weights().items()))
    assert serialise(weights()) == serialise(reversed_order)
    assert serialise(weights()) != serialise(weights(seed=1))


def test_the_config_is_one_that_peft_understands(tmp_path: Path) -> None:
    write(tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (config.peft_type, config.task_type, config.inference_mode) == ("LORA", "CAUSAL_LM", True)
    plain = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert plain["target_modules"] == ["q_proj"]
    assert (plain["r"], plain["lora_alpha"], plain["bias"], plain["use_dora"]) == (4, 8, "none", False)
    assert plain["modules_to_save"] is None


def test_an_existing_adapter_is_never_written_over(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    with pytest.raises(AdapterInvalid, match="exists already"):
        write(tmp_path, weights(seed=1))
    assert read_adapter(tmp_path / "adapter")[0] == manifest


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_changed_byte_is_noticed(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "adapter" / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(AdapterInvalid, match=f"{name} does not hash"):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
def test_a_missing_file_is_noticed(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "adapter" / name).unlink()
    with pytest.raises(AdapterInvalid, match=name):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("tensors", "error", "reason"),
    [
        ({}, AdapterInvalid, "no weights"),
        ({A: np.full((4, 5), np.nan, np.float32), B: np.zeros((6, 4), np.float32)}, NotFinite, "NaN"),
        ({A: np.zeros((4, 5), np.float32), B: np.full((6, 4), np.inf, np.float32)}, NotFinite, "infinity"),
        ({A: np.zeros((8, 5), np.float32), B: np.zeros((6, 8), np.float32)}, AdapterInvalid, "rank 4"),
        ({A: np.zeros((4, 5), np.float32)}, AdapterInvalid, "no half"),
        ({"lm_head.weight": np.zeros((4, 4), np.float32)}, AdapterInvalid, "neither"),
    ],
)
def test_unsound_weights_are_refused_and_nothing_is_left_behind(
    tensors: dict[str, np.ndarray], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        require_sound(tensors, rank=4)
    with pytest.raises(error, match=reason):
        write_adapter(tmp_path / "out", tensors, LORA, ["q_proj"], "/models/base", LINEAGE)
    assert not (tmp_path / "out").exists()


def test_a_parent_must_be_the_named_one_of_the_rounds_base_model_and_shape(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    parent = ParentAdapter(name=manifest.name, directory=str(tmp_path / "adapter"))
    fingerprints = LINEAGE.fingerprints
    assert not changed(load_file(tmp_path / "adapter" / WEIGHTS), read_parent(parent, LORA, fingerprints))
    with pytest.raises(AdapterInvalid, match="rank 4 and alpha 8, the round asks for rank 8 and alpha 8"):
        read_parent(parent, LoraSpec(rank=8, alpha=8), fingerprints)
    with pytest.raises(AdapterInvalid, match="not the parent policy-0001-11111111"):
        read_parent(parent.model_copy(update={"name": "policy-0001-11111111"}), LORA, fingerprints)
    for part in ("base_model", "tokenizer"):
        with pytest.raises(AdapterInvalid, match=f"belongs to {part}"):
            read_parent(parent, LORA, fingerprints.model_copy(update={part: "e" * 64}))


def test_changed_sees_a_single_weight() -> None:
    after = weights()
    assert not changed(weights(), after)
    after[B][0, 0] += 1e-6
    assert changed(weights(), after)


def test_a_first_adapter_has_no_parent(tmp_path: Path) -> None:
    first = dataclasses.replace(LINEAGE, parent=None)
    manifest = write_adapter(tmp_path, weights(), LORA, ["q_proj"], "/models/base", first)
    assert manifest.parent is None
