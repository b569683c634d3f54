"""This machine's copies of published adapters, which its replicas share. A copy that one of them holds stays.

The engine may read an adapter again while requests run on it, and a missing file would end the engine. So whoever
holds a copy holds a shared lock on its directory, and whoever takes one away an exclusive one; a killed process lets go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serving.adapters import fetch
from serving.contracts import AdapterFiles
from serving.errors import AdapterRefused

SPARE_COPIES = 8  # that nobody holds and that are kept all the same: a rollback need not fetch them again


SCRAP_SECONDS = 3600.0  # what was begun so long ago belongs to a process that is no more


class Copy:
    """A directory that stays as long as it is held."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        self.directory = directory
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


class Copies:
    """One per replica, over the folder of this machine. All of it blocks: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, files: AdapterFiles, check: Callable[[Path], object]) -> Copy:
        """A copy that `check` has found sound; raises what `check` and `fetch` raise.

        One that is refused is taken away, so that the next attempt fetches it anew.
        """
        while True:
            directory = fetch(files, self._folder)
            descriptor = _locked(directory, fcntl.LOCK_SH)
            if descriptor is not None:  # else it was taken away in between
                break
        try:
            check(directory)
        except BaseException as fault:
            os.close(descriptor)
            if isinstance(fault, AdapterRefused):
                self._remove(directory)
            raise
        os.utime(directory)  # when it was last needed
        return Copy(directory, descriptor)

    def tidy(self) -> None:
        """Takes away what nobody holds, but for the few that were needed last, and what killed processes left."""
        copies = [entry for entry in self._folder.glob("[!.]*") if entry.is_dir()]
        free = [copy for copy in sorted(copies, key=_last_needed, reverse=True) if not _is_held(copy)]
        for copy in free[SPARE_COPIES:]:
            self._remove(copy)
        for scrap in self._folder.glob(".*"):
            if _last_needed(scrap) < time.time() - SCRAP_SECONDS:
                shutil.rmtree(scrap, ignore_errors=True)

    def _remove(self, directory: Path) -> None:
        """Unless another replica holds it."""
        descriptor = _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return
        try:
            going = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=self._folder))
            os.rename(directory, going / directory.name)  # in one step: nobody sees half of it
            shutil.rmtree(going)
        finally:
            os.close(descriptor)


def _last_needed(directory: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return directory.stat().st_mtime
    return 0.0


def _is_held(directory: Path) -> bool:
    descriptor = _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _locked(directory: Path, how: int) -> int | None:
    """The lock's descriptor; None: the lock is not to be had, or the directory is no longer the one at its path."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how)
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
