"""A folder of whole files, on this machine or in an object store: what a round needs again on whatever node it goes on.

A URL without a scheme is a path here. Any other is opened by fsspec, which takes its credentials and endpoints from the
environment as the store's own tools do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import fsspec

from training.files import write_file


def is_remote(url: str) -> bool:
    """Whether other nodes reach it too."""
    return "://" in url and not url.startswith("file://")


class Folder(Protocol):
    """Files by name. A reader sees an old file or the whole new one."""

    def names(self) -> list[str]:
        """Sorted. None, where the folder does not exist yet."""
        ...

    def read(self, name: str) -> bytes | None:
        """None: there is no such file."""
        ...

    def write(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None:
        """Fine when it is gone already."""
        ...

    def tidy(self) -> None:
        """Remove what killed writers have left half-written."""
        ...


def open_folder(url: str) -> Folder:
    return ObjectFolder(url) if is_remote(url) else LocalFolder(Path(url.removeprefix("file://")))


class LocalFolder:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.glob("[!.]*"))

    def read(self, name: str) -> bytes | None:
        path = self._directory / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        write_file(self._directory / name, content)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        for path in self._directory.glob(".*.partial"):
            path.unlink(missing_ok=True)


class ObjectFolder:
    """In an object store a file is there when its upload has ended, and not before: nothing is ever half-written."""

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)

    def names(self) -> list[str]:
        self._files.invalidate_cache()  # another node may have written since
        try:
            return sorted(path.rpartition("/")[2] for path in self._files.ls(self._root, detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        try:
            return self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{name}", content)

    def remove(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return

    def tidy(self) -> None: ...
