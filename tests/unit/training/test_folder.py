"""Whole files by name, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.folder import Folder, LocalFolder, is_remote, open_folder


def test_what_was_written_is_read_and_listed_in_order(folder: Folder) -> None:
    assert folder.names() == []
    folder.write("b", b"two")
    folder.write("a", b"one")
    folder.write("a", b"one again")
    assert folder.names() == ["a", "b"]
    assert (folder.read("a"), folder.read("b"), folder.read("c")) == (b"one again", b"two", None)


def test_removing_twice_removes_once(folder: Folder) -> None:
    folder.write("a", b"")
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == []


def test_what_a_killed_writer_left_is_no_file_and_is_tidied_up(tmp_path: Path) -> None:
    (tmp_path / ".a.17.partial").write_bytes(b"ha")
    folder = LocalFolder(tmp_path)
    assert folder.names() == []
    folder.tidy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "remote"),
    [("/var/lib/rounds", False), ("rounds", False), ("file:///var/lib/rounds", False), ("s3://bucket/rounds", True)],
)
def test_a_url_without_a_scheme_is_a_path_here(url: str, remote: bool) -> None:
    assert is_remote(url) is remote


def test_a_file_url_is_a_path_here(tmp_path: Path) -> None:
    open_folder(f"file://{tmp_path}").write("a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
