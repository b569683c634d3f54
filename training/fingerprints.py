"""Which base model and which rendering of messages a directory holds, as two sha256 digests.

The server computes the same two over the same files, each side on its own; a round starts only when both agree.
Knows file names and bytes; loads nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from training.contracts import Fingerprints, RoundSpec
from training.errors import FingerprintMismatch

_BASE_MODEL_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def fingerprints(model_directory: Path) -> Fingerprints:
    """Digest of the weights with their config, and of the tokenizer with its chat template.

    Each file adds the line `<name> <sha256 hex>` to the outer sha256, names sorted; an absent file adds nothing.
    Reads every byte of the weights: about a second per 2 GB.
    """
    base = [path for pattern in _BASE_MODEL_PATTERNS for path in model_directory.glob(pattern)]
    tokenizer = [model_directory / name for name in _TOKENIZER_FILES if (model_directory / name).is_file()]
    return Fingerprints(base_model=_digest_of_files(base), tokenizer=_digest_of_files(tokenizer))


def require_same(spec: RoundSpec) -> None:
    """Raises `FingerprintMismatch` when the base model or its tokenizer is not the one the server answers with."""
    ours = fingerprints(Path(spec.model))
    for part in ("base_model", "tokenizer"):
        served, found = getattr(spec.fingerprints, part), getattr(ours, part)
        if served != found:
            raise FingerprintMismatch(
                f"{part} in {spec.model} has fingerprint {found[:12]}, the server's is {served[:12]}: "
                "train on the directory that is served"
            )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(paths), key=lambda path: path.name):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
