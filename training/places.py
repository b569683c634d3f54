"""Where a round's files are: with an object store a worker reads copies of its own, and hands back what it leaves.

What is read goes from the store to a scratch folder of this worker before anything else; what is left goes back at the
end, `adapter/manifest.json` last: an adapter without it is not complete. Checkpoints and the reference go through
`folder.py` as they are made. Where all paths are paths of this machine, nothing is copied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from training.adapter import MANIFEST
from training.contracts import RoundReport, RoundSpec
from training.errors import SnapshotInvalid
from training.folder import is_remote

_LEFT = ("adapter_directory", "samples", "held_out", "curves")  # fields of a report that name what was left


@contextmanager
def at_hand(spec: RoundSpec) -> Iterator[RoundSpec]:
    """The same round, with all that it reads and leaves on this machine as long as the block lasts.

    `checkpoints` stays where it is. Raises `SnapshotInvalid` when something is not there.
    """
    if not is_remote(spec.out):
        yield spec
        return
    with tempfile.TemporaryDirectory(prefix=f"round-{spec.round}-") as folder:
        scratch, changed = Path(folder), {}
        changed["snapshot"] = str(_file(spec.snapshot, scratch / "pairs.parquet"))
        changed["out"], changed["storage"] = str(scratch / "out"), str(scratch / "storage")
        if spec.parent is not None:
            directory = _directory(spec.parent.directory, scratch / "parent")
            changed["parent"] = spec.parent.model_copy(update={"directory": str(directory)})
        if spec.candidate is not None:
            changed["candidate"] = str(_directory(spec.candidate, scratch / "candidate"))
        yield spec.model_copy(update=changed)


def hand_back(report: RoundReport, here: RoundSpec, spec: RoundSpec, *, upload: bool) -> RoundReport:
    """The report as it reads where `spec.out` is. One worker uploads what they all have left at `here.out`."""
    if here.out == spec.out:
        return report
    if upload:
        upload_files(Path(here.out), spec.out)
    named: dict[str, Any] = report.model_dump(include=set(_LEFT))
    return report.model_copy(
        update={field: path.replace(here.out, spec.out, 1) for field, path in named.items() if path is not None}
    )


def upload_files(folder: Path, url: str) -> None:
    """All files below the folder; a manifest is there only when all else is."""
    files, root = fsspec.core.url_to_fs(url)
    left = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(left, key=lambda path: path.name == MANIFEST):
        files.put_file(str(path), f"{root}/{path.relative_to(folder).as_posix()}")


def _file(url: str, target: Path) -> Path:
    if not is_remote(url):
        return Path(url)
    files, path = fsspec.core.url_to_fs(url)
    try:
        files.get_file(path, str(target))
    except FileNotFoundError as error:
        raise SnapshotInvalid(f"{url} is not there") from error
    return target


def _directory(url: str, target: Path) -> Path:
    if not is_remote(url):
        return Path(url)
    files, root = fsspec.core.url_to_fs(url)
    target.mkdir()
    for path in files.find(root):
        files.get_file(path, str(target / path.rpartition("/")[2]))
    return target
