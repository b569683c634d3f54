"""A PostgreSQL server as somebody else runs it: on TCP, with a password, and a role that is no superuser."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, create_engine, text

from service.postgres.account import server_account
from service.postgres.programs import environment, program

SUPERUSER, OWNER, PASSWORD, DATABASE = "postgres", "shop", "p@ss:/word %", "heliotrope"


@contextmanager
def external_database(folder: Path, port: int) -> Iterator[str]:
    """Its URL, as long as the block lasts: an empty database of a role that may make others."""
    account = server_account()
    if account is not None:
        account.own(folder)
        account.let_through(Path(program("postgres")))
    data, password = folder / "data", folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)

    def run(name: str, *arguments: str) -> None:
        identity = account.for_subprocess() if account else {}
        with (folder / f"{name}.log").open("ab") as log:
            subprocess.run([program(name), *arguments], check=True, cwd=folder, env=environment(),
                           stdin=subprocess.DEVNULL, stdout=log, stderr=log, **identity)  # fmt: skip

    run("initdb", "-D", str(data), "-U", SUPERUSER, "--encoding=UTF8", "--auth=scram-sha-256", f"--pwfile={password}")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=60"
    run("pg_ctl", "start", "-w", "-D", str(data), "-l", str(data / "log"), "-o", options)
    try:
        _prepare(_url(SUPERUSER, "postgres", port))
        yield _url(OWNER, DATABASE, port).render_as_string(hide_password=False)
    finally:
        run("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(data))


def _url(user: str, database: str, port: int) -> URL:
    return URL.create("postgresql", user, PASSWORD, "127.0.0.1", port, database)


def _prepare(url: URL) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {OWNER} LOGIN CREATEDB PASSWORD '{PASSWORD}'"))
        connection.execute(text(f"CREATE DATABASE {DATABASE} OWNER {OWNER}"))
    engine.dispose()
