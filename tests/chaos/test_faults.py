"""A database that is full, locked, restarted or crowded: clean 503s while it lasts, nothing lost, nothing half done.

Chats are answered all the same, and say that they cannot be rated.
As soon as the cause is gone, the same replicas go on. Users that get a 500, a refusal without cause or no answer within
their patience write it into their histories, and the checker finds it there.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from service.postgres.sessions import APPLICATION
from tests.chaos.database import Database, Part
from tests.chaos.run import perform
from tests.chaos.scene import Scene, Step, Tally

VOTES = 300
STRICT_SECONDS = 10.0  # within which even a refusal has to come
FULL_DISK_BYTES = 160 << 20


def voted(votes: int) -> Callable[[Tally], bool]:
    return lambda tally: tally.acknowledged >= votes


class Refused:
    """Whether so many calls were in vain since this was first asked, and so many chats answered but not recorded."""

    def __init__(self, calls: int, *, unrateable: int = 0) -> None:
        self._calls = calls
        self._unrateable = unrateable
        self._before: Tally | None = None

    def __call__(self, tally: Tally) -> bool:
        before = self._before = self._before or replace(tally)
        return (
            tally.unknown >= before.unknown + self._calls and tally.unrateable >= before.unrateable + self._unrateable
        )


def connect(database: Database) -> psycopg.Connection:
    """A session of somebody else."""
    url = make_url(database.url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False))


def test_a_locked_table_refuses_within_seconds_and_goes_on_when_it_is_free(
    chaos_database: Database, tmp_path: Path
) -> None:
    with connect(chaos_database) as stranger:
        steps = [
            Step(voted(100), lambda: stranger.execute("LOCK TABLE feedback IN ACCESS EXCLUSIVE MODE")),
            Step(Refused(12), stranger.rollback),
        ]
        report = perform(chaos_database, tmp_path, 1, VOTES, lambda scene: steps, patience_seconds=STRICT_SECONDS)
    assert report.findings.faults == [], report


def test_no_connection_to_be_had_is_refused_and_mends_itself(chaos_database: Database, tmp_path: Path) -> None:
    with ExitStack() as strangers:
        steps = [
            Step(voted(100), lambda: _crowd(chaos_database, strangers)),
            Step(Refused(30, unrateable=1), strangers.close),
        ]
        report = perform(chaos_database, tmp_path, 2, VOTES, lambda scene: steps, patience_seconds=STRICT_SECONDS)
    assert report.findings.faults == [], report


def test_votes_survive_a_database_that_is_restarted_every_other_second(
    chaos_database: Database, tmp_path: Path
) -> None:
    restarts: list[int] = []

    def restart() -> None:
        for postmaster in chaos_database.pids(Part.POSTMASTER):
            os.kill(postmaster, signal.SIGQUIT)  # what `pg_ctl stop -m immediate` does; the scene starts it again
            restarts.append(postmaster)

    steps = (Step(lambda tally: True, restart, seconds=2.0) for _ in itertools.count())
    report = perform(chaos_database, tmp_path, 3, 2000, lambda scene: steps)
    assert report.findings.faults == [], report
    assert len(restarts) >= 2


def test_a_full_disk_is_refused_and_mends_itself_when_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    database = Database(small_disk / "database")
    database.start()
    try:
        ballast = small_disk / "ballast"

        def steps(scene: Scene) -> list[Step]:
            return [Step(voted(100), lambda: _fill(ballast)), Step(Refused(60, unrateable=1), ballast.unlink)]

        report = perform(database, tmp_path, 4, VOTES, steps)
    finally:
        (small_disk / "ballast").unlink(missing_ok=True)
        database.stop()
    assert report.findings.faults == [], report


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    disk = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL_DISK_BYTES}", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a full disk needs a small file system, and mounting one is not allowed: {mounted.stderr.strip()}")
    disk.chmod(0o755)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def _fill(ballast: Path) -> None:
    """Until not one byte more can be written."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def _crowd(database: Database, strangers: ExitStack) -> None:
    """Takes every connection that there is, those of the service too."""
    owner = strangers.enter_context(connect(database))
    owner.autocommit = True
    ours = "FROM pg_stat_activity WHERE application_name = %s"
    while True:
        owner.execute(f"SELECT pg_terminate_backend(pid) {ours}", [APPLICATION])
        try:
            while True:
                strangers.enter_context(connect(database))
        except psycopg.OperationalError:
            if not owner.execute(f"SELECT 1 {ours}", [APPLICATION]).fetchone():
                return
