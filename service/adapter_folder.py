"""The folder of published adapters: each is there completely or not at all, and is never changed (invariant 5).

Knows files only. Which of them are needed is in the store; who answers with them is `registry.py`'s.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from serving.adapters import MANIFEST, sha256_of, verify
from serving.contracts import AdapterFiles
from serving.errors import AdapterRefused
from training.contracts import Fingerprints

log = logging.getLogger(__name__)

_GOING = ".going"  # behind a dot and the name: on its way out, and nobody's adapter any more


class AdapterFolder:
    """One per service. All of it blocks: call it in a thread."""

    def __init__(self, folder: Path, fingerprints: Fingerprints, max_lora_rank: int) -> None:
        self._folder = folder
        self._fingerprints = fingerprints
        self._max_lora_rank = max_lora_rank

    def verify(self, directory: Path, name: str, *, manifest_sha256: str | None = None) -> None:
        """`manifest_sha256` is that of its publication; None before. Raises `AdapterRefused`."""
        verify(
            directory,
            name=name,
            base=self._fingerprints.base_model,
            tokenizer=self._fingerprints.tokenizer,
            max_rank=self._max_lora_rank,
            manifest_sha256=manifest_sha256,
        )

    def fault(self, directory: Path, name: str) -> str | None:
        """Why the adapter in `directory` cannot be served; None: it can."""
        try:
            self.verify(directory, name)
        except AdapterRefused as refusal:
            return str(refusal)
        return None

    def settle(self, source: Path, name: str) -> Path:
        """Copy to the published place: complete or not at all, and never over what is there."""
        target = self._folder / name
        if target.is_dir():
            self.verify(target, name)
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._folder))
        try:
            for file in sorted(source.iterdir()):
                copied = scratch / file.name
                shutil.copyfile(file, copied)
                _fsync(copied)
            _fsync(scratch)
            self.verify(scratch, name)
            os.rename(scratch, target)
            _fsync(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target


def candidate_files(directory: Path, name: str) -> AdapterFiles:
    """Of an adapter that nobody has published."""
    return AdapterFiles(name=name, directory=str(directory), manifest_sha256=sha256_of(directory / MANIFEST))


def remove(directory: Path, folder: Path) -> None:
    """Takes a published adapter's files away, all at once for whoever looks. Again does nothing.

    Only what lies in the service's own folder: what lies elsewhere is somebody else's to delete.
    """
    if directory.parent != folder:
        log.warning("%s stays: it does not lie in %s", directory, folder)
        return
    going = folder / f".{directory.name}{_GOING}"
    shutil.rmtree(going, ignore_errors=True)  # of a sweep that was killed
    if directory.is_dir():
        os.rename(directory, going)
        shutil.rmtree(going)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
