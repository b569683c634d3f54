"""This machine's store: the embedded PostgreSQL kept running, or the server that the settings name; and its first keys."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.client import KEYS_FILE
from service.contracts import Role
from service.errors import Unavailable
from service.postgres.embedded import EmbeddedDatabase
from service.settings import Settings
from service.store.database import migrate
from service.store.store import Store

LOOK_SECONDS = 1.0  # between looks whether the embedded server is alive

log = logging.getLogger(__name__)


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """The store's URL, migrated. The embedded server runs as long as the block lasts, and no longer."""
    url = settings.store_url
    if url is not None:
        migrate(url)
        yield url
        return
    database = EmbeddedDatabase(settings.state / "database")
    try:
        database.start()
        migrate(database.url)
        with kept_alive(database):
            yield database.url
    finally:
        database.stop()


@contextmanager
def kept_alive(database: EmbeddedDatabase, look_seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """A server that dies meanwhile is started again, and recovers all that was committed; nobody else would do it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(look_seconds):
            try:
                if not database.running():
                    log.warning("the embedded database does not answer: it is started again")
                    database.start()
            except (Unavailable, OSError) as error:  # a full disk, no process to be had: perhaps not at the next look
                log.error("%s", error)

    thread = threading.Thread(target=watch, name="embedded-database", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def first_keys(state: Path, store_url: str) -> dict[str, str]:
    """One key of each role on the first start, by role; they are kept in the state folder for the command line of this
    machine. None are made when there are keys, and the file with them, already.
    """
    secrets = asyncio.run(_issue_first(store_url, lost=not (state / KEYS_FILE).is_file()))
    if secrets:
        descriptor = os.open(state / KEYS_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            json.dump(secrets, out)
    return secrets


async def _issue_first(store_url: str, *, lost: bool) -> dict[str, str]:
    store = Store(store_url)
    try:
        if not lost and await store.keys.list():
            return {}
        return {role.value: (await store.keys.issue(role, "local"))[1] for role in Role}
    finally:
        await store.close()
