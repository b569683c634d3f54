"""Copies of adapters on one machine: shared by its replicas, and never taken from under one of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serving.adapters import WEIGHTS
from serving.contracts import AdapterFiles
from serving.copies import SCRAP_SECONDS, SPARE_COPIES, Copies
from serving.errors import AdapterRefused
from tests.adapter_files import write_adapter


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return write_adapter(tmp_path / "published")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def sound(directory: Path) -> None:
    assert (directory / WEIGHTS).is_file()


def corrupt(directory: Path) -> None:
    raise AdapterRefused(f"{directory.name} is corrupt")


def test_replicas_of_a_machine_share_a_copy(files: AdapterFiles, folder: Path) -> None:
    one, two = (Copies(folder).hold(files, sound) for _ in range(2))
    assert one.directory == two.directory == folder / files.name


def test_a_copy_that_is_refused_is_fetched_anew(files: AdapterFiles, folder: Path) -> None:
    with pytest.raises(AdapterRefused):
        Copies(folder).hold(files, corrupt)
    assert list(folder.iterdir()) == []
    assert Copies(folder).hold(files, sound).directory.is_dir()


def test_a_copy_that_another_replica_holds_stays_even_where_it_is_refused(files: AdapterFiles, folder: Path) -> None:
    other = Copies(folder).hold(files, sound)
    for _ in range(2):
        with pytest.raises(AdapterRefused):
            Copies(folder).hold(files, corrupt)
        assert (other.directory / WEIGHTS).is_file(), "its engine may read the files again"
    other.release()
    with pytest.raises(AdapterRefused):
        Copies(folder).hold(files, corrupt)
    assert list(folder.iterdir()) == []


def test_of_copies_that_nobody_holds_the_last_few_stay(tmp_path: Path, folder: Path) -> None:
    copies = Copies(folder)
    published = [write_adapter(tmp_path / str(ordinal), ordinal) for ordinal in range(1, SPARE_COPIES + 4)]
    held = [copies.hold(files, sound) for files in published]
    for age, copy in enumerate(reversed(held)):
        os.utime(copy.directory, (10_000 - age, 10_000 - age))  # the first was needed longest ago
    copies.tidy()
    assert len(list(folder.iterdir())) == len(held)
    for copy in held[1:]:
        copy.release()
    copies.tidy()
    left = {files.name for files in (published[0], *published[-SPARE_COPIES:])}
    assert {entry.name for entry in folder.iterdir()} == left


def test_what_a_killed_process_left_goes_after_an_hour(files: AdapterFiles, folder: Path) -> None:
    copies = Copies(folder)
    held = copies.hold(files, sound)
    for name, age in ((".old.xyz", 2 * SCRAP_SECONDS), (".new.xyz", 1.0)):
        (folder / name).mkdir()
        then = time.time() - age
        os.utime(folder / name, (then, then))
    copies.tidy()
    assert {entry.name for entry in folder.iterdir()} == {".new.xyz", files.name}
    held.release()


def test_holding_and_releasing_leaves_no_descriptor_open(files: AdapterFiles, folder: Path) -> None:
    before = _descriptors()
    copies = Copies(folder)
    for _ in range(5):
        copies.hold(files, sound).release()
        with pytest.raises(AdapterRefused):
            copies.hold(files, corrupt)
        copies.tidy()
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
