from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, func, inspect, make_url, select, text

from service.errors import BadRequest, Unavailable
from service.postgres.embedded import EmbeddedDatabase
from service.store.database import check_durability, migrate
from service.store.store import Store
from service.store.tables import metadata


def _at_once(count: int, call: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            call()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=attempt) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def _run(url: str, *statements: str) -> object:
    """The first value of the last statement's answer; each runs on its own, outside of a transaction."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            results = [connection.execute(text(statement)) for statement in statements]
            return results[-1].scalar() if results[-1].returns_rows else None
    finally:
        engine.dispose()


# --- the schema ---------------------------------------------------------------------------------------


def test_the_migrated_schema_is_that_of_the_tables(database_engine: Engine) -> None:
    options = {"compare_type": True, "compare_server_default": True}
    with database_engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        assert inspect(connection).has_sequence("adapter_ordinals")
        running = text("SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_rounds_one_running'")
        assert "UNIQUE" in connection.execute(running).scalar_one()


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """The URL of another database on the same server, without a schema."""
    _run(database_url, "DROP DATABASE IF EXISTS empty", "CREATE DATABASE empty")
    yield make_url(database_url).set(database="empty").render_as_string(hide_password=False)
    _run(database_url, "DROP DATABASE empty")


def test_of_several_migrations_at_once_one_is_made(empty_database: str) -> None:
    _at_once(3, lambda: migrate(empty_database))
    assert _run(empty_database, "SELECT count(*) FROM route WHERE generation = 0 AND stable = 'base'") == 1
    migrate(empty_database)
    assert _run(empty_database, "SELECT count(*) FROM route") == 1


def test_a_database_of_a_newer_version_is_refused_and_left_alone(empty_database: str) -> None:
    migrate(empty_database)
    _run(empty_database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Unavailable, match=r"'9999'.*Upgrade heliotrope") as refused:
        migrate(empty_database)
    assert refused.value.code == "database_newer"
    assert _run(empty_database, "SELECT version_num FROM alembic_version") == "9999"


# --- durability ---------------------------------------------------------------------------------------


def test_a_session_that_does_not_wait_for_the_disk_is_refused(empty_database: str) -> None:
    url = make_url(empty_database).update_query_dict({"options": "-c synchronous_commit=off"})
    with pytest.raises(Unavailable, match=r"synchronous_commit = off.*Set synchronous_commit = on") as refused:
        migrate(url.render_as_string(hide_password=False))
    assert refused.value.code == "database_not_durable"
    assert _run(empty_database, "SELECT to_regclass('route')") is None


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_does_not_wait_for_the_disk_is_refused(database_url: str, setting: str) -> None:
    def turn(value: str) -> None:
        _run(database_url, f"ALTER SYSTEM SET {setting} = {value}", "SELECT pg_reload_conf()")
        while _run(database_url, f"SHOW {setting}") != value:
            pass

    turn("off")
    try:
        with pytest.raises(Unavailable, match=f"{setting} = off"):
            migrate(database_url)
    finally:
        turn("on")
    migrate(database_url)


def test_the_embedded_database_is_durable_as_it_comes(database_engine: Engine) -> None:
    with database_engine.connect() as connection:
        check_durability(connection)
        assert connection.execute(select(func.current_setting("synchronous_commit"))).scalar_one() == "on"


# --- the connection -----------------------------------------------------------------------------------


async def test_ping_writes_and_takes_it_back(store: Store, database_engine: Engine) -> None:
    with database_engine.connect() as connection:
        before = connection.execute(text("SELECT * FROM route")).one()
        await store.ping()
        assert connection.execute(text("SELECT * FROM route")).one() == before


async def test_a_database_that_takes_no_writes_is_not_ready(database_url: str) -> None:
    url = make_url(database_url).update_query_dict({"options": "-c default_transaction_read_only=on"})
    store = Store(url.render_as_string(hide_password=False))
    with pytest.raises(Unavailable) as refused:
        await store.ping()
    assert refused.value.code == "storage_unavailable"
    await store.close()


async def test_a_database_that_is_away_is_unavailable_for_every_noun(tmp_path: Path) -> None:
    url = EmbeddedDatabase(tmp_path).url
    store = Store(url)
    for call in (store.ping(), store.route.read(), store.rounds.list(), store.audit.list()):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.code == "storage_unavailable"
    await store.close()
    with pytest.raises(Unavailable):
        migrate(url)


async def test_lost_connections_are_replaced(store: Store, database_engine: Engine) -> None:
    await asyncio.gather(*(store.ping() for _ in range(4)))
    others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with database_engine.connect() as connection:
        assert connection.execute(text(f"{others} AND backend_type = 'client backend'")).all()
    await asyncio.gather(*(store.ping() for _ in range(4)))


async def test_a_value_that_no_database_holds_is_a_bad_request(store: Store) -> None:
    with pytest.raises(BadRequest, match="NUL"):
        await store.adapters.get("policy\0")
    with pytest.raises(BadRequest, match="out of range"):
        await store.rounds.get(10**30)


# --- the embedded server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a server that these tests start, kill and stop: an awkward path, too long for a socket, with the leftovers
    of a first start that was killed."""
    folder = tmp_path_factory.mktemp("state") / ("a 'long' % path, " * 6) / "database"
    (folder / "data.unfinished").mkdir(parents=True)
    (folder / "data.unfinished" / "PG_VERSION").write_text("18\n")
    yield folder
    EmbeddedDatabase(folder).stop()


@pytest.fixture
def server(folder: Path) -> EmbeddedDatabase:
    database = EmbeddedDatabase(folder)
    database.start()
    _run(database.url, "CREATE TABLE IF NOT EXISTS kept (value text)", "TRUNCATE kept")
    return database


def _postmaster(database: EmbeddedDatabase) -> psutil.Process:
    return psutil.Process(int(str(_run(database.url, "SELECT pg_read_file('postmaster.pid')")).split()[0]))


def _kill(database: EmbeddedDatabase) -> None:
    process = _postmaster(database)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process])


def test_another_handle_finds_the_server_that_runs(server: EmbeddedDatabase, folder: Path) -> None:
    other = EmbeddedDatabase(folder)
    assert other.running()
    before = _postmaster(server)
    other.start()
    assert other.url == server.url
    assert _postmaster(other) == before


def test_a_server_that_is_slow_to_answer_runs(server: EmbeddedDatabase) -> None:
    """As on a busy machine, where it does not get to the question for longer than pg_isready waits by itself."""
    postmaster = _postmaster(server)
    postmaster.suspend()
    awake = threading.Timer(3.5, postmaster.resume)
    awake.start()
    assert server.running()
    awake.join()


def test_after_a_kill_the_next_start_finds_what_was_committed(server: EmbeddedDatabase, folder: Path) -> None:
    _run(server.url, "INSERT INTO kept VALUES ('a vote')")
    _kill(server)
    assert not server.running()
    _at_once(3, EmbeddedDatabase(folder).start)
    assert _run(server.url, "SELECT value FROM kept") == "a vote"


def test_a_process_id_that_now_belongs_to_somebody_else_is_no_server(
    server: EmbeddedDatabase, folder: Path, database_engine: Engine
) -> None:
    """Not even when somebody else is another folder's server, of the same account."""
    lock = Path(str(_run(server.url, "SHOW unix_socket_directories"))) / ".s.PGSQL.5432.lock"
    with database_engine.connect() as connection:
        other = connection.execute(text("SELECT pg_read_file('postmaster.pid')")).scalar_one().split()[0]
    files = {file: file.read_text().splitlines()[1:] for file in (folder / "data" / "postmaster.pid", lock)}
    _kill(server)
    for file, lines in files.items():
        file.write_text("\n".join([other, *lines]))
    assert not server.running()
    assert not server.stop()
    server.start()
    assert server.running()


def test_stopping_leaves_nothing_but_the_data(server: EmbeddedDatabase, folder: Path) -> None:
    _run(server.url, "INSERT INTO kept VALUES ('a vote')")
    postmaster = _postmaster(server)
    everyone = [postmaster, *postmaster.children()]
    sockets = Path(str(_run(server.url, "SHOW unix_socket_directories")))
    assert server.stop()
    assert not EmbeddedDatabase(folder).stop()
    assert not server.running()
    assert not sockets.exists()
    psutil.wait_procs(everyone)
    server.start()
    assert _run(server.url, "SELECT value FROM kept") == "a vote"


def test_an_unfinished_first_start_is_begun_again(server: EmbeddedDatabase, folder: Path) -> None:
    assert server.running()
    assert not (folder / "data.unfinished").exists()


def test_only_the_owner_can_reach_the_server(server: EmbeddedDatabase, folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0
    socket = Path(str(_run(server.url, "SHOW unix_socket_directories"))) / ".s.PGSQL.5432"
    assert socket.stat().st_mode & 0o077 == 0
    assert _run(server.url, "SHOW listen_addresses") == ""


def test_a_database_of_another_postgresql_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(Unavailable, match="PostgreSQL 16, this is PostgreSQL 18"):
        EmbeddedDatabase(tmp_path).start()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("18\n")
    with pytest.raises(Unavailable, match=r"pg_ctl says .*postgres\.log") as refused:
        EmbeddedDatabase(tmp_path).start()
    assert refused.value.code == "database_failed"


def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="Mend its permissions") as refused:
        EmbeddedDatabase(tmp_path / "file" / "database").start()
    assert refused.value.code == "database_failed"


def test_stopping_what_was_never_started_is_no_error(tmp_path: Path) -> None:
    assert not EmbeddedDatabase(tmp_path / "nothing").stop()
    assert not (tmp_path / "nothing").exists()
