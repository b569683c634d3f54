"""The whole service with its artifacts in an object store: nothing that another node needs lies on this machine."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sqlalchemy import Engine, text

from service import depot
from service.contracts import Adapter, Round, RoundState
from service.errors import AdapterRejected, BadRequest
from service.keeping import snapshots
from service.keeping.backup import back_up, restore
from service.keeping.retention import Sweeper
from service.keeping.settings import RetentionSettings
from service.store.store import Store
from serving.adapters import FILES, WEIGHTS, sha256_of
from serving.contracts import BASE
from tests.adapter_files import write_adapter
from tests.fake_trainer import Done
from tests.small_service import SmallService
from training.places import upload_files
from training.snapshot import SnapshotRow, iterate

QUESTIONS = [f"question {number}" for number in range(4)]


@pytest.fixture
def url() -> Iterator[str]:
    """Of an empty object store."""
    url = "memory://bucket/heliotrope"
    yield url
    files, root = fsspec.core.url_to_fs(url)
    if files.exists(root):
        files.rm(root, recursive=True)


async def _start(store: Store, folder: Path, url: str, *scripts: list[Any]) -> SmallService:
    return await SmallService.start(store, folder, *scripts, sections={"artifacts": {"url": url}})


@pytest.fixture
async def small(store: Store, tmp_path: Path, url: str) -> SmallService:
    return await _start(store, tmp_path / "here", url, [Done(samples=3)])


async def _learned(small: SmallService, *questions: str) -> Round:
    await small.like(*questions)
    ended = await small.round()
    assert ended.state is RoundState.PROMOTED, ended.reason
    return ended


def _rows(small: SmallService, n: int) -> list[SnapshotRow]:
    return depot.load(f"{small.depot.round(n)}/{snapshots.SNAPSHOT}", lambda file: list(iterate(file)))


async def test_rounds_are_trained_judged_published_promoted_and_rolled_back_there(
    small: SmallService, store: Store, url: str
) -> None:
    first = await _learned(small, *QUESTIONS)
    assert first.parity is not None, "answers that training left are read from there"
    second = await _learned(small, "one more", "and another")
    assert second.parent == first.adapter
    assert await small.answers_by() == {second.adapter}
    await small.registry.rollback(who="tess")
    assert await small.answers_by() == {first.adapter}
    adapters = {adapter.name: adapter.directory for adapter in await store.adapters.list()}
    assert adapters == {name: f"{url}/adapters/{name}" for name in (first.adapter, second.adapter)}
    assert [depot.names(directory) for directory in adapters.values()] == [sorted(FILES)] * 2
    spec = small.trainer.started[1]
    assert spec.parent is not None and spec.parent.directory == adapters[str(first.adapter)]
    assert all(place.startswith(f"{url}/rounds/0002/") for place in (spec.snapshot, spec.out, spec.checkpoints))
    assert {path.name for path in small.settings.state.iterdir()} <= {"cache", "baselines"}


async def test_its_evidence_is_read_from_there(small: SmallService) -> None:
    learned = await _learned(small, *QUESTIONS)
    operator = await small.operator()
    shown = (await operator.get(f"/ops/rounds/{learned.n}/report")).json()
    assert shown["recipe"] == {}, "as the fake trainer's manifest says"
    depot.remove_directory(f"{small.depot.adapters}/{learned.adapter}")
    assert (await operator.get(f"/ops/rounds/{learned.n}/report")).json()["recipe"] is None


async def test_another_node_serves_and_promotes_what_this_one_has_published(
    small: SmallService, store: Store, tmp_path: Path, url: str
) -> None:
    first = await _learned(small, *QUESTIONS)
    second = await _learned(small, "one more", "and another")
    there = await _start(store, tmp_path / "there", url)
    assert await there.answers_by() == {second.adapter}
    await there.registry.promote(str(first.adapter), who="tess")
    assert await there.answers_by() == {first.adapter}
    third = await _learned(there, "a third", "and a fourth")
    assert third.parent == first.adapter


async def test_a_spoiled_adapter_there_is_not_promoted(small: SmallService, tmp_path: Path) -> None:
    name = await _publish(small, tmp_path, 1)
    with depot.writing(f"{small.depot.adapters}/{name}/{WEIGHTS}") as file:
        file.write_bytes(b"something else")
    with pytest.raises(AdapterRejected, match="does not hash"):
        await small.registry.promote(name, who="tess")
    assert await small.answers_by() == {BASE}


async def test_an_adapter_from_outside_is_left_there_for_training_to_measure(
    small: SmallService, tmp_path: Path, url: str
) -> None:
    await small.like(*QUESTIONS)
    write_adapter(tmp_path / "outside", 33)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in sorted(FILES):
            tar.add(tmp_path / "outside" / name, name)
    operator = await small.operator()
    headers = {"idempotency-key": "once"}
    began = await operator.post("/ops/adapters", content=packed.getvalue(), headers=headers)
    again = await operator.post("/ops/adapters", content=packed.getvalue(), headers=headers)
    directory = began.json()["candidate"]["directory"]
    assert again.json()["candidate"]["directory"] == directory, "the copy that came second is not kept"
    assert [f"{url}/uploads/{name}" for name in depot.names(f"{url}/uploads")] == [directory]
    assert list(small.settings.uploads.iterdir()) == []
    ended = await small.finish(await small.store.rounds.get(1))
    assert ended.state is RoundState.PROMOTED, ended.reason
    adapter = await small.store.adapters.get(str(ended.adapter))
    assert adapter.weights_sha256 == sha256_of(tmp_path / "outside" / WEIGHTS)


async def test_who_is_erased_is_erased_there(small: SmallService) -> None:
    learned = await _learned(small, *QUESTIONS)
    samples = f"{small.depot.round(learned.n)}/attempt-1/{snapshots.SAMPLES}"
    before = _rows(small, learned.n)
    assert len(before) == len(QUESTIONS)
    assert depot.is_file(samples)
    operator = await small.operator()
    erased = (await operator.delete(f"/ops/users/who asks {QUESTIONS[0]}")).json()
    assert (erased["snapshots"], erased["snapshot_rows"]) == ([learned.n], 1)
    assert len(_rows(small, learned.n)) == len(before) - 1
    assert not depot.is_file(samples)


async def test_what_is_past_its_time_goes_there(
    small: SmallService,
    database_engine: Engine,
    start_round: Callable[..., Awaitable[Round]],
    tmp_path: Path,
) -> None:
    over = await start_round(RoundState.REJECTED, pairs=())
    with database_engine.begin() as connection:
        connection.execute(text("UPDATE rounds SET updated_at = now() - interval '40 days'"))
    for name in (snapshots.SNAPSHOT, f"attempt-1/{snapshots.SAMPLES}", "attempt-1/curves.svg"):
        with depot.writing(f"{small.depot.round(over.n)}/{name}") as file:
            file.write_text("content")
    names = [await _publish(small, tmp_path, ordinal) for ordinal in (1, 2)]
    retention = RetentionSettings(snapshot_days=30, adapters_kept=1)
    sweeper = Sweeper(small.store, retention, small.depot.rounds, small.depot.adapters)
    assert await sweeper.sweep() == {"snapshots": 1, "adapters": 1}
    assert depot.names(small.depot.round(over.n)) == ["attempt-1"]
    assert depot.names(f"{small.depot.round(over.n)}/attempt-1") == ["curves.svg"]
    assert depot.names(small.depot.adapters) == names[1:]
    assert await sweeper.sweep() == {"snapshots": 0, "adapters": 0}


async def _publish(small: SmallService, scratch: Path, ordinal: int) -> str:
    """An adapter that nobody needs."""
    files = write_adapter(scratch / str(ordinal), ordinal)
    directory = f"{small.depot.adapters}/{files.name}"
    upload_files(scratch / str(ordinal), directory)
    adapter = Adapter(
        name=files.name, ordinal=ordinal, parent=BASE, round=None, weights_sha256="a" * 64,
        manifest_sha256=files.manifest_sha256, directory=directory, pair_digest=None, verdict=None,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    await small.store.adapters.publish(adapter, fence=None)
    return files.name


async def test_a_backup_without_the_adapters_is_refused_with_the_remedy(small: SmallService, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    for attempt in (lambda: back_up(small.settings, file), lambda: restore(small.settings, file, replace=True)):
        with pytest.raises(BadRequest, match="pg_dump") as refusal:
            attempt()
        assert (refusal.value.code, refusal.value.param) == ("artifacts_elsewhere", "artifacts.url")
    assert not file.exists()
