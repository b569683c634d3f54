"""The file of a backup: what is taken from it, and every way in which it may be damaged."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadRequest
from service.keeping import archive

ADAPTER = "adapters/policy-0001-aaaaaaaa/adapter_config.json"
MEMBERS = {archive.DATABASE: b"PGDMP" + bytes(1000), ADAPTER: b"{}", archive.KEYS: b'{"app": "hel_app_x"}'}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "backup"
    sources = {}
    for number, (name, content) in enumerate(MEMBERS.items()):
        sources[name] = tmp_path / str(number)
        sources[name].write_bytes(content)
    archive.write(file, sources, schema="0003", state=Path("/srv/heliotrope"))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def _contents(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        sources = {member.name: tar.extractfile(member) for member in tar}
        return {name: source.read() for name, source in sources.items() if source is not None}


def _pack(file: Path, contents: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = kind if name == archive.KEYS else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(content))


def test_what_goes_in_comes_out(file: Path, folder: Path) -> None:
    manifest = archive.unpack(file, folder)
    assert (manifest.schema_version, manifest.state) == ("0003", "/srv/heliotrope")
    assert {name: (folder / name).read_bytes() for name in manifest.files} == MEMBERS
    assert (folder / archive.KEYS).stat().st_mode & 0o077 == 0
    assert file.stat().st_mode & 0o077 == 0


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        archive.write(tmp_path / "file", {archive.KEYS: tmp_path / "gone"}, schema="0003", state=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.8])
def test_half_a_file_is_damaged(file: Path, folder: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    _refused(file, folder)


def test_any_flipped_bit_is_noticed(file: Path, folder: Path) -> None:
    plain = gzip.decompress(file.read_bytes())
    for at in [plain.index(content) + 1 for content in MEMBERS.values()] + [plain.index(b"files") + 12]:
        broken = bytearray(plain)
        broken[at] ^= 1
        file.write_bytes(gzip.compress(bytes(broken)))
        _refused(file, folder)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_no_other_file_is_taken_for_a_backup(file: Path, folder: Path) -> None:
    file.write_bytes(b"hello")
    _refused(file, folder)
    file.write_bytes(gzip.compress(b"hello"))
    _refused(file, folder)


@pytest.mark.parametrize("name", [*MEMBERS, archive.MANIFEST])
def test_a_member_that_is_missing_is_noticed(file: Path, folder: Path, name: str) -> None:
    contents = _contents(file)
    del contents[name]
    _pack(file, contents)
    _refused(file, folder)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "adapters/../../outside", "adapters/a/b/c", "other", "adapters/.a/b"]
)
def test_nothing_else_is_unpacked(file: Path, folder: Path, name: str) -> None:
    _pack(file, {name: b"x", **_contents(file)})
    _refused(file, folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_files_are_unpacked(file: Path, folder: Path, kind: bytes) -> None:
    _pack(file, _contents(file), kind)
    _refused(file, folder)


def test_a_format_that_only_a_newer_version_knows_is_named(file: Path, folder: Path) -> None:
    contents = _contents(file)
    newer: dict[str, Any] = json.loads(contents[archive.MANIFEST]) | {"format": 2, "more": True}
    _pack(file, contents | {archive.MANIFEST: json.dumps(newer).encode()})
    with pytest.raises(BadRequest, match="Upgrade heliotrope") as refused:
        archive.unpack(file, folder)
    assert refused.value.code == "backup_newer"


def test_a_file_that_is_not_there_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        archive.unpack(tmp_path / "gone", folder)
    assert refused.value.code == "backup_not_found"


def _refused(file: Path, folder: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        archive.unpack(file, folder)
    assert refused.value.code == "backup_damaged"
