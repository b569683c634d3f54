"""A backup made beside a service that writes, and what comes out of it on another machine."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from sqlalchemy import create_engine, make_url, text

from service.contracts import Role, RoundState
from service.errors import BadRequest, Conflict
from service.keeping.backup import back_up, restore
from service.settings import Settings
from service.store.database import migrate
from service.store.store import Store
from serving.contracts import Completion
from tests.small_service import SmallService


def _run(url: str, *statements: str) -> Any:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            results = [connection.execute(text(statement)) for statement in statements]
            return results[-1].scalar() if results[-1].returns_rows else None
    finally:
        engine.dispose()


@pytest.fixture
def other_url(database_url: str) -> Iterator[str]:
    """Another database of the same server, without a schema."""
    _run(database_url, "DROP DATABASE IF EXISTS other", "CREATE DATABASE other")
    yield make_url(database_url).set(database="other").render_as_string(hide_password=False)
    _run(database_url, "DROP DATABASE other WITH (FORCE)")


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    """A service with an adapter that answers, and the keys of its machine."""
    small = await SmallService.start(store, tmp_path / "here")
    await small.like("one", "two")
    ended = await small.round()
    assert ended.state is RoundState.PROMOTED, ended.reason
    (small.settings.state / "keys.json").write_text('{"operator": "hel_operator_x"}')
    return small


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _settings(state: Path, url: str) -> Settings:
    return Settings.model_validate({"state": state, "store": {"url": url}})


@pytest.fixture
def here(small: SmallService, database_url: str) -> Settings:
    return _settings(small.settings.state, database_url)


@pytest.fixture
def there(tmp_path: Path, other_url: str) -> Settings:
    return _settings(tmp_path / "there", other_url)


async def test_a_backup_made_while_votes_come_in_is_a_whole_service_elsewhere(
    small: SmallService, here: Settings, there: Settings, tmp_path: Path, make_completion: Callable[..., Completion]
) -> None:
    key, presented = await small.store.keys.issue(Role.APP, "shop")
    done = asyncio.Event()

    async def keep_writing() -> int:
        for number in range(10_000):
            await small.store.completions.record(make_completion(f"late-{number}", "one", "two"))
            if done.is_set():
                return number
        raise AssertionError("the backup never ended")

    writing = asyncio.create_task(keep_writing())
    file = tmp_path / "backups" / "today.tar.gz"
    await asyncio.to_thread(back_up, here, file)
    done.set()
    assert await writing > 0
    assert file.stat().st_mode & 0o077 == 0

    before = await small.store.route.read()
    await asyncio.to_thread(restore, there, file, replace=False)
    assert there.store.url is not None
    restored = Store(there.store.url)
    assert await restored.route.read() == before
    adapter = await restored.adapters.get(before.stable)
    assert Path(adapter.directory) == there.state / "adapters" / adapter.name
    assert _names(Path(adapter.directory)) == _names(here.state / "adapters" / adapter.name)
    assert await restored.keys.verify(presented) == key
    elsewhere = await SmallService.start(restored, there.state)
    assert await elsewhere.answers_by() == {before.stable}  # every hash of it was checked
    assert (there.state / "keys.json").read_text() == (here.state / "keys.json").read_text()
    counts = "SELECT (SELECT count(*) FROM feedback) || ' ' || (SELECT count(*) FROM round_pairs)"
    assert _run(there.store.url, counts) == _run(str(here.store.url), counts)
    halves = "SELECT count(*) FROM completions WHERE id LIKE 'late-%' AND (SELECT count(*) FROM choices WHERE completion_id = id) <> 2"
    assert _run(there.store.url, halves) == 0
    await restored.close()


async def test_a_round_that_ran_during_the_backup_has_failed_in_it(
    small: SmallService, here: Settings, there: Settings, tmp_path: Path
) -> None:
    running = await small.ask_for_round()
    await asyncio.to_thread(back_up, here, tmp_path / "file")
    await asyncio.to_thread(restore, there, tmp_path / "file", replace=False)
    ended = "SELECT state || ': ' || reason FROM rounds ORDER BY n DESC LIMIT 1"
    assert _run(str(there.store.url), ended) == "failed: It was running when the backup was made."
    assert (await small.store.rounds.get(running.n)).state is RoundState.QUEUED


async def test_a_store_that_is_there_is_only_given_up_when_asked(
    small: SmallService, here: Settings, there: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    await asyncio.to_thread(back_up, here, file)
    url = str(there.store.url)
    migrate(url)
    _run(url, "INSERT INTO keys (id, role, app, secret_sha256) VALUES ('old', 'app', 'old', '')")
    with pytest.raises(Conflict) as refused:
        restore(there, file, replace=False)
    assert refused.value.code == "database_not_empty"
    assert _run(url, "SELECT app FROM keys") == "old"
    for number in ("0001", "0002"):
        (there.state / "rounds" / number).mkdir(parents=True)
    restore(there, file, replace=True)
    assert _names(there.state / "rounds") == {"0001"}  # the second round is still to come
    assert _run(url, "SELECT count(*) FROM keys WHERE id = 'old'") == 0
    assert _run(url, "SELECT count(*) FROM feedback") == 4
    restore(there, file, replace=True)
    with pytest.raises(Conflict) as refused:
        back_up(here, file)
    assert refused.value.code == "backup_exists"


async def test_nothing_is_restored_under_a_running_service(
    small: SmallService, here: Settings, there: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    await asyncio.to_thread(back_up, here, file)
    there.state.mkdir()
    with filelock.FileLock(there.state / "up.lock"), pytest.raises(Conflict) as refused:
        restore(there, file, replace=True)
    assert refused.value.code == "already_running"
    with pytest.raises(Conflict, match="A service uses this database"):
        restore(_settings(tmp_path / "elsewhere", str(here.store.url)), file, replace=True)


async def test_a_damaged_file_changes_nothing(
    small: SmallService, here: Settings, there: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    await asyncio.to_thread(back_up, here, file)
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[content.index(b"PGDMP") + 200] ^= 1
    file.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(BadRequest) as refused:
        restore(there, file, replace=True)
    assert refused.value.code == "backup_damaged"
    assert _run(str(there.store.url), "SELECT to_regclass('keys')") is None
    assert _names(there.state) <= {"up.lock"}


def test_where_nothing_is_there_is_nothing_to_back_up(tmp_path: Path, other_url: str) -> None:
    for settings in (Settings.model_validate({"state": tmp_path}), _settings(tmp_path, other_url)):
        with pytest.raises(BadRequest) as refused:
            back_up(settings, tmp_path / "file")
        assert refused.value.code == "nothing_to_back_up"
    assert not (tmp_path / "file").exists()


def test_an_embedded_server_that_stands_still_is_started_for_it(tmp_path: Path) -> None:
    from service.postgres.embedded import EmbeddedDatabase

    here, there = (Settings.model_validate({"state": tmp_path / name}) for name in ("here", "there"))
    database = EmbeddedDatabase(here.state / "database")
    database.start()
    migrate(database.url)
    _run(database.url, "UPDATE route SET generation = 7")
    database.stop()
    back_up(here, tmp_path / "file")
    restore(there, tmp_path / "file", replace=False)
    assert not database.running()
    restored = EmbeddedDatabase(there.state / "database")
    assert not restored.running()
    restored.start()
    try:
        assert _run(restored.url, "SELECT generation FROM route") == 7
    finally:
        restored.stop()
