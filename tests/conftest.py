"""What several test folders share: a real PostgreSQL, emptied before each test, and one running service."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import Engine, create_engine, text

from service.postgres.embedded import EmbeddedDatabase
from service.store.database import migrate
from service.store.store import Store
from service.store.tables import metadata, route
from tests.external_database import external_database

# For engines that tests start in their own process; a deployment sets the same for its replicas.
os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


# A shell that runs the tests in the background has them ignore SIGINT, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# DELETE and setval, for TRUNCATE and RESTART make new files, and on tables this small those cost far more.
_EMPTY = [f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables) if table is not route]
_RESET = [
    "SELECT setval(format('%I', sequencename)::regclass, 1, false) FROM pg_sequences",
    "UPDATE route SET generation = 0, stable = 'base', previous = NULL, candidate = NULL, candidate_share = 0, "
    "baseline = NULL, baseline_share = 0",
]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A running Heliotrope, as its users reach it. Clients are made once and closed together."""

    def __init__(self, url: str, state: Path) -> None:
        self.url = url
        self.state = state
        self.keys: dict[str, str] = json.loads((state / "keys.json").read_text())
        # Retries are off: a failure must be seen.
        self.openai = OpenAI(base_url=f"{url}/v1", api_key=self.keys["app"], max_retries=0, timeout=120)
        self.app = self._client("app")
        self.operator = self._client("operator")

    def _client(self, role: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.keys[role]}"}, timeout=120)

    def close(self) -> None:
        for client in (self.openai, self.app, self.operator):
            client.close()


# Modules whose tests run twice: on the embedded server, and on one that is reached by TCP and a password.
ON_BOTH_DATABASES = {
    *("test_store_completions", "test_store_feedback", "test_store_keys", "test_store_route"),
    *("test_backup", "test_erasing", "test_migrations"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = str(getattr(metafunc.module, "__name__", "")).rpartition(".")[2]
    if module in ON_BOTH_DATABASES and "database_url" in metafunc.fixturenames:
        metafunc.parametrize("database_url", ["embedded", "external"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest) -> str:
    """Of a server with the schema in it."""
    return request.getfixturevalue(f"{getattr(request, 'param', 'embedded')}_database_url")


@pytest.fixture(scope="session")
def external_database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with external_database(tmp_path_factory.mktemp("external"), free_port()) as url:
        migrate(url)
        yield url


@pytest.fixture(scope="session")
def embedded_database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = EmbeddedDatabase(tmp_path_factory.mktemp("database"))
    database.start()
    try:
        migrate(database.url)
        yield database.url
    finally:
        database.stop()


@pytest.fixture(scope="session")
def database_engine(database_url: str) -> Iterator[Engine]:
    """Outside of any event loop, for what the store itself does not offer."""
    engine = create_engine(database_url, pool_pre_ping=True)  # some tests cut all connections
    yield engine
    engine.dispose()


def empty(engine: Engine) -> None:
    """The database is as after the first start."""
    with engine.begin() as connection:
        for statement in _EMPTY + _RESET:
            connection.execute(text(statement))


@pytest.fixture
async def store(database_url: str, database_engine: Engine) -> AsyncIterator[Store]:
    """A store as after the first start. It is made in the test's own event loop, to which its connections belong."""
    empty(database_engine)
    store = Store(database_url)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One cluster for all tests that need Ray: the seedling on two replicas, so that every swap is on both."""
    from service import node
    from service.settings import load

    state = tmp_path_factory.mktemp("state")
    overrides: dict[str, Any] = {
        "state": str(state),
        "server": {"port": free_port()},
        "serving": {"replicas": 2},
        "training": {"min_pairs": 8},
    }
    with node.running(load(environment={}, overrides=overrides)) as url:
        service = Service(url, state)
        yield service
        service.close()
