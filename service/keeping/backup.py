"""`heliotrope backup` and `restore`: a service's store, adapters and keys in one file, and out of it elsewhere.

A backup is made beside the running service. First the database is dumped, then the adapters are copied: they never
change, and are on disk before the database names them, so whatever the dump names is there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock

from service.client import KEYS_FILE
from service.errors import BadRequest, Conflict
from service.keeping import archive, snapshots
from service.keeping.archive import Manifest
from service.postgres.embedded import EmbeddedDatabase
from service.settings import Settings
from service.store import dump
from service.store.database import known_schemas, migrate

ADAPTERS = "adapters"
ROUNDS = "rounds"


def back_up(settings: Settings, file: Path) -> Manifest:
    """Writes the backup. Raises `Conflict` when the file is there already, `BadRequest` when there is nothing yet."""
    _require_here(settings)
    if file.exists():
        raise Conflict(f"{file} is there already. Name a new file.", code="backup_exists")
    state = settings.state.expanduser().resolve()
    with ExitStack() as stack:
        url = stack.enter_context(_database(settings, state, make=False))
        schema = dump.schema(url)
        if schema is None:
            raise BadRequest("The database is empty: there is nothing to back up.", code="nothing_to_back_up")
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".backup.", dir=file.parent)))
        dump.dump(url, scratch / archive.DATABASE)
        members = {archive.DATABASE: scratch / archive.DATABASE}
        members |= {str(path.relative_to(state)): path for path in _adapter_files(state / ADAPTERS)}
        if (state / KEYS_FILE).is_file():
            members[archive.KEYS] = state / KEYS_FILE
        return archive.write(file, members, schema=schema, state=state)


def restore(settings: Settings, file: Path, *, replace: bool) -> Manifest:
    """Makes this machine's service the one of the backup; all of it is checked before anything is changed.

    Raises `Conflict` while a service runs, or when there is a store already and not `replace`; `BadRequest` for a
    damaged file, or one from a newer version.
    """
    _require_here(settings)
    state = settings.state.expanduser().resolve()
    state.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(state))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".restore.", dir=state)))
        manifest = archive.unpack(file, scratch)
        if manifest.schema_version not in known_schemas():
            raise BadRequest(
                f"{file} has the schema '{manifest.schema_version}', which this version does not know: a newer one "
                "made it. Upgrade heliotrope.",
                code="backup_newer",
            )
        url = stack.enter_context(_database(settings, state, make=True))
        _refuse_if_used(url, replace=replace)
        _place_adapters(scratch / ADAPTERS, state / ADAPTERS)
        dump.restore(url, scratch / archive.DATABASE, scratch, old_state=manifest.state, new_state=str(state))
        migrate(url)
        _give_up_rounds(state / ROUNDS, last=dump.last_round(url))
        if (scratch / archive.KEYS).is_file():
            (scratch / archive.KEYS).replace(state / KEYS_FILE)
    return manifest


def _require_here(settings: Settings) -> None:
    """A backup with a database that names adapters which are not in it would be none."""
    if settings.artifacts.url is not None:
        raise BadRequest(
            f"Adapters lie in {settings.artifacts.url} (artifacts.url), and a backup holds only what lies in the state "
            "folder. Dump the database with pg_dump first, then copy the object store with its own tools: adapters never "
            "change, and are there before the database names them.",
            param="artifacts.url", code="artifacts_elsewhere",
        )  # fmt: skip


def _adapter_files(folder: Path) -> Iterator[Path]:
    """Of published adapters; what begins with a dot is not finished."""
    for adapter in sorted(folder.glob("[!.]*")):
        yield from (path for path in sorted(adapter.glob("[!.]*")) if path.is_file())


def _refuse_if_used(url: str, *, replace: bool) -> None:
    if dump.users_of(url):
        raise Conflict("A service uses this database. Stop it first.", code="already_running")
    if not replace and dump.schema(url) is not None:
        raise Conflict(
            "The database has a store already. With --replace it is given up for the one of the backup.",
            code="database_not_empty",
        )


def _give_up_rounds(rounds: Path, *, last: int) -> None:
    """Files of rounds that the restored store knows nothing of: a later round with the number would go on from them."""
    for number, folder in snapshots.folders(str(rounds)):
        if number > last:
            shutil.rmtree(folder)


def _place_adapters(source: Path, target: Path) -> None:
    """Whole directories. One of the same name that is there already is put aside for the one of the backup."""
    target.mkdir(parents=True, exist_ok=True)
    for adapter in sorted(source.glob("*")):
        for file in adapter.iterdir():
            file.chmod(0o644)
        adapter.chmod(0o755)
        old = target / f".{adapter.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if (target / adapter.name).exists():
            os.rename(target / adapter.name, old)
        os.rename(adapter, target / adapter.name)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """The lock that `up` holds as long as it runs. Raises `Conflict`."""
    try:
        with filelock.FileLock(state / "up.lock").acquire(timeout=0):
            yield
    except filelock.Timeout as taken:
        raise Conflict(
            f"Heliotrope runs on {state}. Stop it with 'heliotrope down' first.", code="already_running"
        ) from taken


@contextmanager
def _database(settings: Settings, state: Path, *, make: bool) -> Iterator[str]:
    """The store's URL; an embedded server that does not run is started for as long as the block lasts."""
    if settings.store.url is not None:
        yield settings.store.url
        return
    database = EmbeddedDatabase(state / "database")
    if database.running():
        yield database.url
        return
    if not make and not (state / "database").is_dir():
        raise BadRequest(f"There is no database in {state}: there is nothing to back up.", code="nothing_to_back_up")
    try:
        database.start()
        yield database.url
    finally:
        database.stop()
