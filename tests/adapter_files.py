"""Small valid adapter directories, written without torch, and the means to spoil one."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from serving.adapters import CONFIG, MANIFEST, WEIGHTS, sha256_of
from serving.contracts import AdapterFiles
from training.contracts import Fingerprints

FINGERPRINTS = Fingerprints(base_model="b" * 64, tokenizer="7" * 64)
HIDDEN = 64  # width of the layer that the adapter changes
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"

Weights = dict[str, np.ndarray]


def write_adapter(
    directory: Path,
    ordinal: int = 1,
    *,
    rank: int = 8,
    parent: str | None = None,
    round: int = 1,
    pair_digest: str = "d" * 64,
) -> AdapterFiles:
    """Writes a whole adapter; its weights, and so its name, follow from `ordinal`."""
    directory.mkdir(parents=True)
    chance = np.random.default_rng(ordinal)
    weights = {
        f"{MODULE}.lora_A.weight": chance.normal(size=(rank, HIDDEN)).astype(np.float32),
        f"{MODULE}.lora_B.weight": chance.normal(size=(HIDDEN, rank)).astype(np.float32),
    }
    save_file(weights, directory / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "bias": "none"}
    write_json(directory / CONFIG, config | {"use_dora": False, "modules_to_save": None})
    name = f"policy-{ordinal:04d}-{sha256_of(directory / WEIGHTS)[:8]}"
    manifest = {
        "schema_version": 1,
        "name": name,
        "parent": parent,
        "round": round,
        "base_model": FINGERPRINTS.base_model,
        "tokenizer": FINGERPRINTS.tokenizer,
        "files": {file: sha256_of(directory / file) for file in (WEIGHTS, CONFIG)},
        "rank": rank,
        "target_modules": ["q_proj"],
        "pair_digest": pair_digest,
        "training": {},
    }
    write_json(directory / MANIFEST, manifest)
    return AdapterFiles(name=name, directory=str(directory), manifest_sha256=sha256_of(directory / MANIFEST))


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def flip_byte(file: Path) -> None:
    """One bit of the last byte: the file's length and header stay as they are."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_manifest(directory: Path, **changes: Any) -> None:
    write_json(directory / MANIFEST, read_json(directory / MANIFEST) | changes)


def change_config(directory: Path, **changes: Any) -> None:
    """As if it had been written so: the manifest agrees."""
    write_json(directory / CONFIG, read_json(directory / CONFIG) | changes)
    _close(directory)


def change_weights(directory: Path, change: Callable[[Weights], Weights]) -> None:
    """As if it had been trained so: the manifest agrees."""
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)
    _close(directory)


def replace_weights(directory: Path, content: bytes) -> None:
    """Any bytes at all in place of the weights, to which the manifest agrees."""
    (directory / WEIGHTS).write_bytes(content)
    assert sha256(content).hexdigest() == sha256_of(directory / WEIGHTS)
    _close(directory)


def _close(directory: Path) -> None:
    change_manifest(directory, files={file: sha256_of(directory / file) for file in (WEIGHTS, CONFIG)})
