"""The folder of published adapters: each is there completely or not at all, and is never changed (invariant 5).

Knows files only. Which of them are needed is in the store; who answers with them is `registry.py`'s.
"""

from __future__ import annotations

import logging
import shutil
from hashlib import sha256
from pathlib import Path

from service import depot
from serving.adapters import MANIFEST, verify
from serving.contracts import AdapterFiles
from serving.errors import AdapterRefused
from training.contracts import Fingerprints

log = logging.getLogger(__name__)


class AdapterFolder:
    """One per service. All of it blocks: call it in a thread. Directories are addresses of `depot.py`."""

    def __init__(self, folder: str, fingerprints: Fingerprints, max_lora_rank: int) -> None:
        self._folder = folder
        self._fingerprints = fingerprints
        self._max_lora_rank = max_lora_rank

    def verify(self, directory: str, name: str, *, manifest_sha256: str | None = None) -> None:
        """`manifest_sha256` is that of its publication; None before. Raises `AdapterRefused`."""
        with depot.at_hand(directory) as here:
            self._verify(here, name, manifest_sha256)

    def _verify(self, here: Path, name: str, manifest_sha256: str | None = None) -> None:
        verify(
            here,
            name=name,
            base=self._fingerprints.base_model,
            tokenizer=self._fingerprints.tokenizer,
            max_rank=self._max_lora_rank,
            manifest_sha256=manifest_sha256,
        )

    def fault(self, directory: str, name: str) -> str | None:
        """Why the adapter in `directory` cannot be served; None: it can."""
        try:
            self.verify(directory, name)
        except AdapterRefused as refusal:
            return str(refusal)
        return None

    def settle(self, source: str, name: str) -> AdapterFiles:
        """Copy to the published place: complete or not at all, and never over what is there."""
        target = f"{self._folder}/{name}"
        if depot.is_complete(target):
            self.verify(target, name)
            return files_of(target, name)
        with depot.at_hand(source) as left, depot.making(target) as copy:
            for file in sorted(left.iterdir()):
                shutil.copyfile(file, copy / file.name)
            self._verify(copy, name)
        return files_of(target, name)


def files_of(directory: str, name: str) -> AdapterFiles:
    """Of a complete adapter, published or not."""
    manifest_sha256 = sha256(depot.read(f"{directory}/{MANIFEST}")).hexdigest()
    return AdapterFiles(name=name, directory=directory, manifest_sha256=manifest_sha256)


def remove(directory: str, folder: str) -> None:
    """Takes a published adapter's files away, all at once for whoever looks. Again does nothing.

    Only what lies in the service's own folder: what lies elsewhere is somebody else's to delete.
    """
    if directory.rpartition("/")[0] != folder:
        log.warning("%s stays: it does not lie in %s", directory, folder)
        return
    depot.remove_directory(directory)
