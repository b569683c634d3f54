"""A backup as one file: a compressed tar of the database's dump, the adapters and the keys of this machine.

The last member is `manifest.json`: what made it, and the sha256 of every other member. Nothing is taken from a file
that differs from its manifest in anything.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.errors import BadRequest
from serving.adapters import sha256_of
from training.files import whole_file

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "database.dump"
KEYS = "keys.json"
_MEMBER = re.compile(r"database\.dump|keys\.json|manifest\.json|adapters/[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    made_at: datetime
    schema_version: str  # of the database
    state: str  # the folder that paths in the database lie in
    files: dict[str, str]  # member -> sha256 hex


def write(file: Path, members: Mapping[str, Path], *, schema: str, state: Path) -> Manifest:
    """There completely or not at all, and for its owner's eyes only: it holds keys and people's words."""
    with whole_file(file) as partial:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        with tarfile.open(partial, "w:gz", compresslevel=1) as tar:
            digests = {}
            for name, source in members.items():
                digests[name] = sha256_of(source)
                tar.add(source, name, recursive=False, filter=_anonymous)
            manifest = Manifest(made_at=datetime.now(UTC), schema_version=schema, state=str(state), files=digests)
            content = manifest.model_dump_json(indent=2).encode()
            member = tarfile.TarInfo(MANIFEST)
            member.size = len(content)
            tar.addfile(_anonymous(member), io.BytesIO(content))
    return manifest


def unpack(file: Path, folder: Path) -> Manifest:
    """Its members, in the folder, each with the digest that the manifest names. Raises `BadRequest`."""
    with _readable(file):
        with tarfile.open(file, "r:gz") as tar:
            for member in tar:
                if not member.isfile() or not _MEMBER.fullmatch(member.name) or (folder / member.name).exists():
                    raise _damaged(file, f"'{member.name[:100]}' is no part of a backup, or there twice")
                tar.extract(member, folder, filter="data")
        found: Any = json.loads((folder / MANIFEST).read_bytes())
        if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
            raise BadRequest(
                f"{file} has the format {found['format']}, which this version does not know. Upgrade heliotrope.",
                code="backup_newer",
            )
        manifest = Manifest.model_validate(found)
        there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        del there[MANIFEST]
        wrong = [name for name in {*there, *manifest.files} if not _matches(there.get(name), manifest.files.get(name))]
        if wrong or DATABASE not in there:
            raise _damaged(file, f"'{min(wrong, default=DATABASE)}' is missing or not what it was")
    return manifest


def _matches(path: Path | None, digest: str | None) -> bool:
    return path is not None and digest == sha256_of(path)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if error.filename == str(file):
            raise BadRequest(f"There is no file {file}.", code="backup_not_found") from error
        raise _damaged(file, "its manifest is missing") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:  # also pydantic's
        raise _damaged(file, str(error).splitlines()[0]) from error


def _damaged(file: Path, why: str) -> BadRequest:
    return BadRequest(f"{file} is damaged, or no backup: {why}. Nothing was changed.", code="backup_damaged")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member
