"""Where files of rounds and adapters lie: on this machine and in an object store, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service import depot
from service.depot import Depot
from service.errors import Unavailable
from service.settings import Settings
from serving.adapters import MANIFEST


class Diary(MemoryFileSystem):
    """An object store that notes what was changed in it, in order."""

    protocol = "diary"
    entries: ClassVar[list[tuple[str, str]]] = []

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        super().put_file(lpath, rpath, *args, **options)
        self.entries.append(("put", rpath.rpartition("/")[2]))

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        self.entries.append(("rm", path.rpartition("/")[2]))


class Away(MemoryFileSystem):
    """An object store that does not answer."""

    protocol = "away"

    def invalidate_cache(self, path: str | None = None) -> None:
        raise ConnectionError("nobody listens")

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise ConnectionError("nobody listens")

    cat_file: Any = _refuse
    rm_file: Any = _refuse
    put_file: Any = _refuse


fsspec.register_implementation("diary", Diary, clobber=True)
fsspec.register_implementation("away", Away, clobber=True)


@pytest.fixture(params=["here", "elsewhere"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder of this machine, and one of an object store."""
    Diary.entries.clear()
    yield str(tmp_path / "depot") if request.param == "here" else "diary://bucket/depot"
    files, folder = fsspec.core.url_to_fs("diary://bucket/depot")
    if files.exists(folder):
        files.rm(folder, recursive=True)


def _make(directory: str) -> None:
    with depot.making(directory) as new:
        for name in ("a.json", MANIFEST, "weights"):
            (new / name).write_text(name)


def _contents(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in directory.iterdir()}


def test_a_file_that_is_written_is_at_its_address(root: str) -> None:
    address = f"{root}/rounds/0001/pairs"
    assert not depot.is_file(address)
    for text in ("first", "second"):
        with depot.writing(address) as file:
            file.write_text(text)
        assert depot.is_file(address)
        assert depot.read(address).decode() == depot.load(address, Path.read_text) == text
    assert depot.names(f"{root}/rounds") == ["0001"]
    depot.remove(address)
    depot.remove(address)
    assert not depot.is_file(address)


def test_a_directory_is_there_with_all_its_files(root: str) -> None:
    address = f"{root}/adapters/policy"
    assert not depot.is_complete(address)
    _make(address)
    assert depot.is_complete(address)
    assert depot.load(address, _contents) == {name: name for name in ("a.json", MANIFEST, "weights")}
    assert depot.names(f"{root}/adapters") == ["policy"]


def test_what_was_begun_and_failed_is_not_there(root: str) -> None:
    def fail() -> None:
        with depot.making(f"{root}/adapters/policy") as new:
            (new / MANIFEST).write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not depot.is_complete(f"{root}/adapters/policy")
    assert depot.names(f"{root}/adapters") == []


def test_what_is_not_there_is_not_at_hand(root: str) -> None:
    with depot.at_hand(f"{root}/nothing") as here:
        assert not here.exists()
    with pytest.raises(FileNotFoundError):
        depot.read(f"{root}/nothing")
    assert depot.names(f"{root}/nothing") == []


def test_a_directory_goes_with_all_its_files_and_no_other(root: str) -> None:
    _make(f"{root}/adapters/policy-1")
    _make(f"{root}/adapters/policy-10")
    for _ in range(2):
        depot.remove_directory(f"{root}/adapters/policy-1")
        assert not depot.is_complete(f"{root}/adapters/policy-1")
    assert depot.names(f"{root}/adapters") == ["policy-10"]


@pytest.mark.parametrize("root", ["elsewhere"], indirect=True)
def test_in_an_object_store_the_manifest_comes_last_and_goes_first(root: str) -> None:
    _make(f"{root}/policy")
    depot.remove_directory(f"{root}/policy")
    assert Diary.entries == [
        ("put", "a.json"), ("put", "weights"), ("put", MANIFEST),
        ("rm", MANIFEST), ("rm", "weights"), ("rm", "a.json"),
    ]  # fmt: skip


def test_an_object_store_that_does_not_answer_is_to_be_asked_again(tmp_path: Path) -> None:
    address = "away://bucket/depot/x"
    for ask in (depot.read, depot.names, depot.remove, depot.is_file, lambda it: depot.load(it, _contents), _make):
        with pytest.raises(Unavailable, match=r"nobody listens.*artifacts\.endpoint") as refusal:
            ask(address)
        assert refusal.value.status == 503


def test_addresses_are_in_the_state_folder_unless_settings_say_where(tmp_path: Path) -> None:
    def of(**artifacts: str) -> Depot:
        return Depot.of(Settings.model_validate({"state": tmp_path, "artifacts": artifacts}))

    assert of().adapters == str(tmp_path / "adapters")
    assert of().round(7) == str(tmp_path / "rounds" / "0007")
    assert of(url="s3://bucket/folder/").adapters == "s3://bucket/folder/adapters"
    assert of(url=f"file://{tmp_path}/other").rounds == str(tmp_path / "other" / "rounds")
