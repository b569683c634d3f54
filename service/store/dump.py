"""The whole store as one file, by PostgreSQL's own `pg_dump`, and back again. Knows which tables there are, not what
is in them.

A dump is consistent, however much is written meanwhile: all of it is what one moment's transaction sees.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, create_engine, inspect, make_url, text

from service.errors import Unavailable
from service.postgres.programs import environment, program
from service.postgres.sessions import APPLICATION, CONNECT_TIMEOUT_SECONDS
from service.postgres.trouble import connection_errors
from service.store.tables import adapter_ordinals, metadata

_TABLES = (*metadata.tables, "alembic_version")

# All in the transaction that restores: what stood there before, and what is different here.
_DROP = "\n".join(
    [f'DROP TABLE IF EXISTS "{table}" CASCADE;' for table in _TABLES]
    + [f"DROP SEQUENCE IF EXISTS {adapter_ordinals.name};"]
)
_MOVE_IN = """
SET search_path = public;
UPDATE adapters SET directory = :'new' || substr(directory, length(:'old') + 1)
    WHERE starts_with(directory, :'old' || '/');
UPDATE rounds SET snapshot = :'new' || substr(snapshot, length(:'old') + 1) WHERE starts_with(snapshot, :'old' || '/');
UPDATE rounds SET state = 'failed', reason = 'It was running when the backup was made.', updated_at = now()
    WHERE state NOT IN ('promoted', 'rejected', 'failed', 'cancelled');
"""


def dump(url: str, file: Path) -> None:
    """Writes the store to the file, in PostgreSQL's custom format. Raises `Unavailable` with what `pg_dump` said."""
    only = [f"--table={name}" for name in (*_TABLES, adapter_ordinals.name)]
    _run("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={file}", *only)


def restore(url: str, file: Path, scratch: Path, *, old_state: str, new_state: str) -> None:
    """Puts the store of the dump in the place of whatever of ours is there, or changes nothing and raises
    `Unavailable`. Paths below the old state folder are changed to the new one.
    """
    scripts = {"drop.sql": _DROP, "restore.sql": None, "move.sql": _MOVE_IN}
    for name, script in scripts.items():
        if script is None:
            _run("pg_restore", None, "--no-owner", "--no-privileges", f"--file={scratch / name}", str(file))
        else:
            (scratch / name).write_text(script)
    together = [f"--file={scratch / name}" for name in scripts]
    paths = ["-v", f"old={old_state}", "-v", f"new={new_state}"]
    _run("psql", url, "-X", "--quiet", "--single-transaction", "-v", "ON_ERROR_STOP=1", *paths, *together)


def schema(url: str) -> str | None:
    """The schema that the store has; None: there is nothing of ours."""
    with _connected(url) as connection:
        ours = set(inspect(connection).get_table_names()) & set(_TABLES)
        if "alembic_version" not in ours:
            return "unknown" if ours else None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def last_round(url: str) -> int:
    """The number of the newest round; 0: there was none."""
    with _connected(url) as connection:
        return connection.execute(text("SELECT coalesce(max(n), 0) FROM rounds")).scalar_one()


def users_of(url: str) -> int:
    """How many connections a service holds to it now, from whichever machine."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = :name"
    )
    with _connected(url) as connection:
        return connection.execute(others, {"name": APPLICATION}).scalar_one()


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})
    try:
        with connection_errors(), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _run(name: str, url: str | None, *arguments: str) -> None:
    where: list[str] = []
    secret: dict[str, str] = {}
    if url is not None:
        where, secret = _address(make_url(url))
    command = [program(name), *where, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment() | secret)
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines()
        raise Unavailable(f"{name} failed: {said[-1] if said else 'no word'}", code="database_failed")


def _address(url: URL) -> tuple[list[str], dict[str, str]]:
    """How PostgreSQL's programs are told where the database is; its password goes where no list of processes shows it."""
    parts = url.get_dialect()().create_connect_args(url)[1]
    password = parts.pop("password", None)
    return [f"--dbname={make_conninfo(**parts)}"], {} if password is None else {"PGPASSWORD": str(password)}
