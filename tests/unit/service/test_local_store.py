"""The store that `up` brings along: it is there as long as `up` is, whatever happens to its processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
from sqlalchemy import create_engine, text

from service import local_store
from service.postgres.embedded import EmbeddedDatabase
from service.settings import Settings


def _ask(url: str, statement: str) -> object:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def test_a_server_that_is_killed_comes_back_with_all_that_was_committed(tmp_path: Path) -> None:
    server = EmbeddedDatabase(tmp_path / "database")
    with local_store.running(Settings(state=tmp_path)) as url:
        _ask(url, "UPDATE route SET generation = 7")
        first = psutil.Process(int(str(_ask(url, "SELECT pg_read_file('postmaster.pid')")).split()[0]))
        first.send_signal(signal.SIGKILL)
        psutil.wait_procs([first])
        while not server.running():
            pass
        assert _ask(url, "SELECT generation FROM route") == 7
    assert not server.running()


def test_the_first_start_makes_one_key_of_each_role_and_no_other_does(
    store: object, database_url: str, tmp_path: Path
) -> None:
    made = local_store.first_keys(tmp_path, database_url)
    file = tmp_path / "keys.json"
    assert set(made) == {"app", "operator", "metrics"}
    assert json.loads(file.read_text()) == made
    assert file.stat().st_mode & 0o077 == 0
    assert local_store.first_keys(tmp_path, database_url) == {}
    assert json.loads(file.read_text()) == made


def test_the_key_file_that_was_lost_is_made_anew(store: object, database_url: str, tmp_path: Path) -> None:
    first = local_store.first_keys(tmp_path, database_url)
    (tmp_path / "keys.json").unlink()
    assert local_store.first_keys(tmp_path, database_url).values() != first.values()
