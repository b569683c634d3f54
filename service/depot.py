"""The depot: where files of rounds and published adapters lie. A folder of this machine, or an object store for all nodes.

An address is a path or a URL of fsspec, and is all that anybody passes on; whoever needs the content asks for a copy on
this machine, which for a path is what lies there itself. Files are there whole or not at all. So are directories: here
one gets its name when all of it is on disk; in an object store `manifest.json` comes last and goes first, and what has
none is not complete.

What is in the files is not for here. All but addresses blocks: call it in a thread. An object store that does not answer
is `Unavailable`, and what was asked of it can be asked again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from service.errors import Unavailable
from service.settings import Settings
from serving.adapters import MANIFEST
from training.files import sync_tree
from training.folder import is_remote, open_folder
from training.places import upload_files

T = TypeVar("T")
_GOING = ".going"  # behind a dot and the name: on its way out, and nobody's any more


@dataclass(frozen=True)
class Depot:
    """The addresses of one service."""

    root: str

    @classmethod
    def of(cls, settings: Settings) -> Depot:
        """Where `[artifacts]` says, by default the state folder."""
        url = settings.artifacts.url
        if url is None:
            return cls(str(settings.state))
        return cls(url.rstrip("/") if is_remote(url) else str(_path(url).expanduser().absolute()))

    @property
    def adapters(self) -> str:
        """Published adapters, one directory each."""
        return f"{self.root}/adapters"

    @property
    def rounds(self) -> str:
        """Snapshots and attempts, one directory for each round."""
        return f"{self.root}/rounds"

    @property
    def candidates(self) -> str:
        """Adapters that were brought from outside, before any verdict."""
        return f"{self.root}/uploads"

    def round(self, n: int) -> str:
        return f"{self.rounds}/{n:04d}"


@contextmanager
def at_hand(address: str) -> Iterator[Path]:
    """The file, or the directory of files, on this machine as long as the block lasts.

    Where nothing lies at the address, nothing lies at the path.
    """
    if not is_remote(address):
        yield _path(address)
        return
    with tempfile.TemporaryDirectory(prefix="depot-") as scratch:
        here = Path(scratch) / _name(address)
        with _reached(address):
            _download(address, here)
        yield here


def load(address: str, reader: Callable[[Path], T]) -> T:
    """What `reader` makes of the file or directory."""
    with at_hand(address) as here:
        return reader(here)


@contextmanager
def writing(address: str) -> Iterator[Path]:
    """Where to write a file, whole or not at all. When the block has ended it is at the address."""
    if not is_remote(address):
        path = _path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="depot-") as scratch:
        yield Path(scratch) / _name(address)
        with _reached(address):
            upload_files(Path(scratch), _folder(address))


@contextmanager
def making(address: str) -> Iterator[Path]:
    """An empty directory for files. When the block has ended it is at the address; if it raises, nothing is."""
    if is_remote(address):
        with tempfile.TemporaryDirectory(prefix="depot-") as scratch:
            yield Path(scratch)
            with _reached(address):
                upload_files(Path(scratch), address)
        return
    target = _path(address)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        sync_tree(scratch)
        os.rename(scratch, target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def names(directory: str) -> list[str]:
    """Of its files and directories, sorted. None, where it does not exist."""
    with _reached(directory):
        return open_folder(directory).names()


def read(address: str) -> bytes:
    """A small file. Raises `FileNotFoundError`."""
    with _reached(address):
        content = open_folder(_folder(address)).read(_name(address))
    if content is None:
        raise FileNotFoundError(f"{address} is not there")
    return content


def is_file(address: str) -> bool:
    if not is_remote(address):
        return _path(address).is_file()
    with _reached(address):
        files, path = _opened(address)
        return files.isfile(path)


def is_complete(directory: str) -> bool:
    """Whether a directory that `making` makes is there."""
    return is_file(f"{directory}/{MANIFEST}") if is_remote(directory) else _path(directory).is_dir()


def remove(address: str) -> None:
    """A file. Fine when it is gone already."""
    with _reached(address):
        open_folder(_folder(address)).remove(_name(address))


def remove_directory(address: str) -> None:
    """A directory of files: for whoever looks all of it at once. Fine when it is gone already."""
    if is_remote(address):
        remove(f"{address}/{MANIFEST}")
        with _reached(address), suppress(FileNotFoundError):
            files, path = _opened(address)
            files.rm(path, recursive=True)
        return
    directory = _path(address)
    going = directory.with_name(f".{directory.name}{_GOING}")
    shutil.rmtree(going, ignore_errors=True)  # of a process that was killed
    if directory.is_dir():
        os.rename(directory, going)
        shutil.rmtree(going)


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Each object store has exceptions of its own; of a path they are those of the operating system, and stay so."""
    try:
        yield
    except Exception as error:
        if not is_remote(address):
            raise
        raise Unavailable(
            f"{address} cannot be reached ({type(error).__name__}: {error}). Look at artifacts.url, artifacts.endpoint "
            "and the credentials of the object store.",
            code="artifacts_unavailable",
        ) from error


def _download(address: str, here: Path) -> None:
    """A file to `here`, the files of a directory into it."""
    files, root = _opened(address)
    try:
        found = files.ls(root, detail=True)
    except FileNotFoundError:
        return
    if [entry["name"] for entry in found] == [root]:
        files.get_file(root, str(here))
        return
    here.mkdir()
    for entry in found:
        if entry["type"] == "file":
            files.get_file(entry["name"], str(here / _name(entry["name"])))


def _opened(address: str) -> tuple[Any, str]:
    files, path = fsspec.core.url_to_fs(address)
    files.invalidate_cache()  # another node may have written since
    return files, path


def _path(address: str) -> Path:
    return Path(address.removeprefix("file://"))


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def _folder(address: str) -> str:
    return address.rpartition("/")[0]


def _fsync(directory: Path) -> None:
    """What was renamed into it is on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
