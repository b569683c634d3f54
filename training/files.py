"""Files and directories that are there completely or not at all, also after a power cut."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to. When the block ends well, what is there is synced and renamed to `path`.

    A reader of `path` sees the old file or the whole new one; a block that raises leaves nothing behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write under a temporary name, sync, rename."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files in the same way. Raises `FileExistsError` when the name is taken."""
    if directory.exists():
        raise FileExistsError(str(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        for name, content in files.items():
            _write_synced(scratch / name, content)
        scratch.chmod(0o755)
        _sync(scratch)
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _sync(directory.parent)


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """What stands beside the tensors of a file: it begins with the length of its header and the header, as JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def sync_tree(directory: Path) -> None:
    """Put all files below the directory on disk, and their names."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _sync(path)
    _sync(directory)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """On disk: a file's content; of a directory, what was renamed into it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
