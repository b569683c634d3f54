"""The adapter directory, as the side that trains it: weights, PEFT config and a manifest that closes them.

The name holds the digest of the weights, so one name can never mean two policies. The directory appears under its
final name only when it is complete and on disk. Imports neither torch nor PEFT: tensors are numpy arrays here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from training.contracts import Fingerprints, LoraSpec, ParentAdapter
from training.errors import AdapterInvalid, NotFinite
from training.files import write_directory

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"

Weights = Mapping[str, np.ndarray]


class Manifest(BaseModel):
    """`manifest.json`: where the adapter comes from, what it fits, and what its files must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    parent: str | None  # None: trained from the base model
    round: int
    base_model: str  # fingerprint, as in `Fingerprints`
    tokenizer: str  # fingerprint
    files: dict[str, str]  # name -> sha256 hex, for every file but the manifest
    rank: int
    target_modules: list[str]
    pair_digest: str
    training: dict[str, Any]  # how it was trained and what was measured


@dataclass(frozen=True)
class Lineage:
    """What the manifest says beside the files themselves."""

    ordinal: int
    parent: ParentAdapter | None
    round: int
    fingerprints: Fingerprints
    pair_digest: str
    training: dict[str, Any]


def serialise(weights: Weights) -> bytes:
    """The bytes of `adapter_model.safetensors`: the same weights always give the same bytes."""
    return save({name: np.ascontiguousarray(weights[name], np.float32) for name in sorted(weights)}, {"format": "pt"})


def adapter_name(ordinal: int, weights_digest: str) -> str:
    return f"policy-{ordinal:04d}-{weights_digest[:8]}"


def write_adapter(
    out: Path, weights: Weights, lora: LoraSpec, target_modules: list[str], base_model: str, lineage: Lineage
) -> Manifest:
    """Write `<out>/adapter`, complete or not at all. `base_model` is the directory that PEFT's config names.

    Raises `NotFinite` or `AdapterInvalid`, before anything is written, for weights that must not be served.
    """
    require_sound(weights, lora.rank)
    files = {
        WEIGHTS: serialise(weights),
        CONFIG: _json(_peft_config(lora, target_modules, base_model)),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = Manifest(
        name=adapter_name(lineage.ordinal, digests[WEIGHTS]),
        parent=lineage.parent.name if lineage.parent else None,
        round=lineage.round,
        base_model=lineage.fingerprints.base_model,
        tokenizer=lineage.fingerprints.tokenizer,
        files=digests,
        rank=lora.rank,
        target_modules=target_modules,
        pair_digest=lineage.pair_digest,
        training=lineage.training,
    )
    directory = out / "adapter"
    try:
        write_directory(directory, files | {MANIFEST: _json(manifest.model_dump(mode="json"))})
    except FileExistsError as error:
        raise AdapterInvalid(f"{directory} exists already: give each attempt a directory of its own") from error
    return manifest


def read_adapter(directory: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Manifest and weights of a directory whose files are those it was closed with; else `AdapterInvalid`."""
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        for name, expected in manifest.files.items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != expected:
                raise AdapterInvalid(f"{directory}: {name} does not hash to what the manifest says")
        weights = load_file(directory / WEIGHTS)
    except (OSError, ValidationError, SafetensorError) as error:
        raise AdapterInvalid(f"{directory}: not a complete adapter directory: {error}") from error
    require_sound(weights, manifest.rank)
    return manifest, weights


def read_parent(parent: ParentAdapter, lora: LoraSpec, fingerprints: Fingerprints) -> dict[str, np.ndarray]:
    """The weights of the adapter that a round continues.

    Raises `AdapterInvalid` unless it is the named one, belongs to the round's base model and has its shape.
    """
    manifest, weights = read_adapter(Path(parent.directory))
    if manifest.name != parent.name:
        raise AdapterInvalid(f"{parent.directory} holds {manifest.name}, not the parent {parent.name}")
    _require_fit(f"parent {parent.name}", Path(parent.directory), manifest, lora, fingerprints)
    return weights


def read_candidate(
    directory: Path, lora: LoraSpec, fingerprints: Fingerprints
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """An adapter that was made elsewhere. Raises `AdapterInvalid` unless this base model can wear it."""
    manifest, weights = read_adapter(directory)
    _require_fit(f"{directory}: {manifest.name}", directory, manifest, lora, fingerprints)
    return manifest, weights


def _require_fit(what: str, directory: Path, manifest: Manifest, lora: LoraSpec, fingerprints: Fingerprints) -> None:
    config = json.loads((directory / CONFIG).read_bytes())
    for part in ("base_model", "tokenizer"):
        theirs, ours = getattr(manifest, part), getattr(fingerprints, part)
        if theirs != ours:
            raise AdapterInvalid(f"{what} belongs to {part} {theirs[:12]}, the round to {ours[:12]}")
    if (config["r"], config["lora_alpha"]) != (lora.rank, lora.alpha):
        raise AdapterInvalid(
            f"{what} has rank {config['r']} and alpha {config['lora_alpha']}, the round asks for "
            f"rank {lora.rank} and alpha {lora.alpha}: both stay constant over the rounds of one base model"
        )


def require_sound(weights: Weights, rank: int) -> None:
    """All tensors are finite LoRA factors of this rank, and each A has its B."""
    if not weights:
        raise AdapterInvalid("the adapter has no weights")
    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise NotFinite(f"adapter weight {name} holds a NaN or an infinity")
        if name.endswith(".lora_A.weight"):
            rank_here, other = tensor.shape[0], name.replace(".lora_A.", ".lora_B.")
        elif name.endswith(".lora_B.weight"):
            rank_here, other = tensor.shape[-1], name.replace(".lora_B.", ".lora_A.")
        else:
            raise AdapterInvalid(f"adapter weight {name} is neither LoRA's A nor its B")
        if tensor.ndim != 2 or rank_here != rank or other not in weights:
            raise AdapterInvalid(f"adapter weight {name} of shape {tensor.shape} is no half of a rank {rank} update")


def changed(before: Weights, after: Weights) -> bool:
    """Whether training moved any weight at all."""
    return any(not np.array_equal(before[name], after[name]) for name in after)


def _peft_config(lora: LoraSpec, target_modules: list[str], base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
