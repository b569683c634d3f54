"""An adapter directory, as the side that serves it sees it: fetch a private copy, verify it, only then load it.

The directory is the seam between `training` and `serving`; this file trusts nothing that the writer said. Every
check of invariant 5 is here, and `service/registry.py` calls the same function before it publishes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from safetensors import SafetensorError, safe_open

from serving.contracts import AdapterFiles, Base
from serving.errors import AdapterRefused, AdapterUnreachable, BaseRefused

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
FILES = frozenset({WEIGHTS, CONFIG, MANIFEST})
SCHEMA_VERSION = 1

_REMEDY = "name the model that it was trained on in model.name, or train an adapter on this one"

_BASE_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_fingerprint(model: Path) -> str:
    """sha256 over the base model's configuration and weights; `training/fingerprints.py` has the same definition."""
    return _fingerprint(path for pattern in _BASE_FILES for path in model.glob(pattern))


def tokenizer_fingerprint(model: Path) -> str:
    """sha256 over the tokenizer's files and the chat template."""
    return _fingerprint(model / name for name in _TOKENIZER_FILES if (model / name).is_file())


def _fingerprint(files: Iterable[Path]) -> str:
    lines = (f"{path.name} {sha256_of(path)}\n" for path in sorted(files, key=lambda path: path.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_base(found: Base, told: Base, model: str) -> None:
    """Raises `BaseRefused` where this node's base model is not the one that the service was started with."""
    for part, here, there in (("weights", found.model, told.model), ("tokenizer", found.tokenizer, told.tokenizer)):
        if here != there:
            raise BaseRefused(
                f"model.name: the {part} in {model} on node {socket.gethostname()} have the digest {here}, and the "
                f"service was started with {there}. Every node needs the same files: copy the base model there anew"
            )


def fetch(files: AdapterFiles, cache: Path) -> Path:
    """Copy a published adapter to this machine, unless a copy is here. Returns the copy's directory, not yet verified.

    Raises `AdapterRefused` where a file is missing, and `AdapterUnreachable` where nobody can say.
    """
    target = cache / files.name
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{files.name}.", dir=cache))
    try:
        _download(files, scratch)
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():  # else another replica of this machine was quicker
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _download(files: AdapterFiles, scratch: Path) -> None:
    try:
        source, root = fsspec.core.url_to_fs(files.directory)
        for name in sorted(FILES):
            source.get_file(f"{root}/{name}", str(scratch / name))
    except FileNotFoundError as error:
        raise AdapterRefused(f"{files.name}: {error} is missing from {files.directory}") from error
    except Exception as error:  # each object store has exceptions of its own
        why = f"{type(error).__name__}: {error}"
        raise AdapterUnreachable(f"{files.name} cannot be fetched from {files.directory} ({why})") from error


def verify(
    directory: Path,
    *,
    name: str,
    base: str,
    tokenizer: str,
    max_rank: int,
    manifest_sha256: str | None = None,
) -> dict[str, Any]:
    """Check an adapter directory against its manifest and its contract; returns the manifest.

    Raises `AdapterRefused` with the first fault. `manifest_sha256` is what the registry recorded at publication;
    None only while publishing.
    """

    def refuse(why: str) -> AdapterRefused:
        return AdapterRefused(f"adapter {name} is refused: {why}")

    if not directory.is_dir():
        raise refuse("its directory does not exist")
    present = {entry.name for entry in directory.iterdir()}
    if present != FILES:
        raise refuse(f"its files are {sorted(present)}, not {sorted(FILES)}")
    if any(entry.is_symlink() or not entry.is_file() for entry in directory.iterdir()):
        raise refuse("it holds something that is not a plain file")
    if manifest_sha256 is not None and sha256_of(directory / MANIFEST) != manifest_sha256:
        raise refuse("manifest.json is not the published one")
    manifest = _json(directory / MANIFEST, refuse)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise refuse(f"manifest schema {manifest.get('schema_version')!r} is not {SCHEMA_VERSION}")
    if manifest.get("name") != name:
        raise refuse(f"its manifest names {manifest.get('name')!r}")
    files = manifest.get("files")
    for file in (WEIGHTS, CONFIG):
        if not isinstance(files, dict) or sha256_of(directory / file) != files.get(file):
            raise refuse(f"{file} does not hash to what its manifest says")
    if manifest.get("base_model") != base:
        theirs = f"it was trained on another base model ({_short(manifest.get('base_model'))}) than the one served"
        raise refuse(f"{theirs} ({_short(base)}): {_REMEDY}")
    if manifest.get("tokenizer") != tokenizer:
        theirs = (
            f"it was trained with another tokenizer or chat template ({_short(manifest.get('tokenizer'))}) than the"
        )
        raise refuse(f"{theirs} one served ({_short(tokenizer)}): {_REMEDY}")
    rank = _check_config(_json(directory / CONFIG, refuse), max_rank, refuse)
    _check_weights(directory / WEIGHTS, rank, refuse)
    return manifest


def _short(digest: Any) -> str:
    return str(digest)[:12]


def _json(path: Path, refuse: Any) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise refuse(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise refuse(f"{path.name} is not a JSON object")
    return value


def _check_config(config: dict[str, Any], max_rank: int, refuse: Any) -> int:
    """Returns the rank."""
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        raise refuse(f"its rank {rank!r} is not between 1 and max_lora_rank = {max_rank}")
    if config.get("peft_type") != "LORA":
        raise refuse("it is no LoRA adapter")
    if config.get("use_dora") or config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise refuse("DoRA, bias and modules_to_save cannot be served")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise refuse("it must have one rank and one alpha for all modules")
    return rank


def _check_weights(path: Path, rank: int, refuse: Any) -> None:
    try:
        with safe_open(path, framework="np") as tensors:
            names = list(tensors.keys())
            for name in names:
                _check_layout(name, tensors.get_slice(name), rank, refuse)
                if not math.isfinite(float(np.abs(tensors.get_tensor(name)).sum(dtype=np.float64))):
                    raise refuse("its weights are not all finite")
    except SafetensorError as error:
        raise refuse(f"{path.name} is not readable: {error}") from error
    if not names:
        raise refuse("it holds no weights")


def _check_layout(name: str, tensor: Any, rank: int, refuse: Any) -> None:
    """Half of a LoRA update: A [rank, in] or B [out, rank], in a type that numpy can check."""
    if not name.endswith((".lora_A.weight", ".lora_B.weight")):
        raise refuse("it holds tensors that are not LoRA's A and B")
    if ".lm_head." in name or ".embed_tokens." in name:
        raise refuse("it changes the head or the embeddings, whose log-probs training and serving do not agree on")
    if tensor.get_dtype() not in ("F32", "F16"):
        raise refuse(f"its tensors are {tensor.get_dtype()}; write them as F32")
    shape = tensor.get_shape()
    if len(shape) != 2 or shape[0 if name.endswith(".lora_A.weight") else 1] != rank:
        raise refuse(f"its tensors do not have the rank {rank} of its configuration")
