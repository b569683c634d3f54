"""An adapter that was trained elsewhere: unpacked from an upload, checked, and closed with a manifest.

Nothing that arrives is trusted: a tar holds two or three files whose names are known beforehand, or it is refused; an
adapter is one that this service could serve and go on training, or it is refused. What passes is a candidate and no
more: a round measures it, and the gate judges it like any other.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contracts import Candidate
from service.depot import Depot, making
from service.errors import AdapterRejected, BadRequest
from service.settings import Settings
from serving.adapters import CONFIG, FILES, MANIFEST, SCHEMA_VERSION, WEIGHTS, sha256_of, verify
from serving.errors import AdapterRefused
from training.contracts import Fingerprints, LoraSpec

MAX_JSON_BYTES = 1 << 20
COPY_BYTES = 1 << 20
UNNAMED = "outside"  # what the manifest that we write calls an adapter that came without one


@dataclass(frozen=True)
class Door:
    """What an adapter must fit to come in."""

    folder: Path  # for uploads while they arrive
    candidates: str  # address of the folder that receives one directory each
    fingerprints: Fingerprints  # the server's
    lora: LoraSpec  # what rounds train, and so must be able to continue
    max_rank: int

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A file for the upload while it arrives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f".{uuid.uuid4().hex}.tar"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    def admit(self, upload: Path, *, assume_base: bool) -> Candidate:
        """The candidate in a tar. Raises `BadRequest` for a tar, `AdapterRejected` for an adapter, that is not one.

        `assume_base`: without a manifest, take it to be trained on the model that is served.
        """
        address = f"{self.candidates}/{uuid.uuid4().hex}"
        with making(address) as directory:
            unpack(upload, directory)
            return self._check(directory, address, assume_base=assume_base)

    def _check(self, directory: Path, address: str, *, assume_base: bool) -> Candidate:
        """`directory` is what will be at the address."""
        vouched = not (directory / MANIFEST).exists()
        config = _object(directory / CONFIG)
        if vouched and not assume_base:
            raise AdapterRejected(
                f"The adapter has no {MANIFEST}, so nothing says which base model it was trained on. If it is the one "
                "that is served, say so with --assume-base (assume_base=true).",
                param=MANIFEST, code="base_unknown",
            )  # fmt: skip
        if vouched:
            self._write_manifest(directory, config)
        manifest = _object(directory / MANIFEST)
        try:
            verify(
                directory,
                name=str(manifest.get("name")),
                base=self.fingerprints.base_model,
                tokenizer=self.fingerprints.tokenizer,
                max_rank=self.max_rank,
            )
        except AdapterRefused as refusal:
            raise AdapterRejected(f"{refusal}.", code="adapter_rejected") from refusal
        self._require_continuable(config)
        parent = manifest.get("parent")
        return Candidate(
            directory=address,
            weights_sha256=sha256_of(directory / WEIGHTS),
            name=None if vouched else str(manifest["name"]),
            parent=parent if isinstance(parent, str) else None,
            assumed_base=vouched,
        )

    def _require_continuable(self, config: dict[str, Any]) -> None:
        """The next round continues what answers, and the shape of that never changes."""
        theirs = (config.get("r"), config.get("lora_alpha"))
        if theirs != (self.lora.rank, self.lora.alpha):
            raise AdapterRejected(
                f"The adapter has rank {theirs[0]} and alpha {theirs[1]}; rounds here train rank {self.lora.rank} and "
                f"alpha {self.lora.alpha}, and could not continue it. Train it anew with those.",
                param=CONFIG, code="other_shape",
            )  # fmt: skip
        if config.get("use_rslora"):  # the copy that a round writes would be scaled by alpha / rank
            raise AdapterRejected("The adapter is scaled by alpha / sqrt(rank) (use_rslora); rounds here train with "
                                  "alpha / rank, and could not continue it.", param=CONFIG, code="other_shape")  # fmt: skip

    def _write_manifest(self, directory: Path, config: dict[str, Any]) -> None:
        """What its trainer did not write: that these are its files, and that it belongs to the served base."""
        targets = config.get("target_modules")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "name": UNNAMED,
            "parent": None,
            "round": 0,
            "base_model": self.fingerprints.base_model,
            "tokenizer": self.fingerprints.tokenizer,
            "files": {name: sha256_of(directory / name) for name in (WEIGHTS, CONFIG)},
            "rank": config.get("r"),
            "target_modules": sorted(targets) if isinstance(targets, list) else [str(targets)],
            "pair_digest": "",
            "training": {},
        }
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def door(settings: Settings, fingerprints: Fingerprints) -> Door:
    """The door of a service with these settings."""
    lora = LoraSpec(rank=settings.training.lora_rank, alpha=settings.training.lora_alpha)
    return Door(settings.uploads, Depot.of(settings).candidates, fingerprints, lora, settings.serving.max_lora_rank)


def unpack(upload: Path, directory: Path) -> None:
    """The files of an adapter, out of an uncompressed tar. Raises `BadRequest` naming what it must not hold."""
    try:
        with tarfile.open(upload, "r:") as tar:
            for member in tar:
                _unpack_one(tar, member, directory)
    except tarfile.TarError as error:
        raise BadRequest(f"The body is not an uncompressed tar: {error}.", code="invalid_tar") from error
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise BadRequest(f"The tar holds no {name}. Send an adapter as PEFT writes it.",
                             param=name, code="file_missing")  # fmt: skip


def _unpack_one(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    def refuse(why: str) -> BadRequest:
        return BadRequest(f"'{member.name[:200]}' in the tar {why}.", param=member.name[:200], code="invalid_member")

    if member.name not in FILES:
        raise refuse(f"is not one of {', '.join(sorted(FILES))}; send those, without any path")
    if not member.isreg() or member.issparse():
        raise refuse("is not a plain file")
    if (directory / member.name).exists():
        raise refuse("is there twice")
    if member.name != WEIGHTS and member.size > MAX_JSON_BYTES:
        raise refuse(f"is larger than {MAX_JSON_BYTES} bytes")
    content = tar.extractfile(member)
    assert content is not None, "it is a plain file"
    with content, (directory / member.name).open("xb") as out:
        shutil.copyfileobj(content, out, COPY_BYTES)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise AdapterRejected(f"{path.name} is not JSON.", param=path.name, code="adapter_rejected") from error
    if not isinstance(value, dict):
        raise AdapterRejected(f"{path.name} is not a JSON object.", param=path.name, code="adapter_rejected")
    return value
