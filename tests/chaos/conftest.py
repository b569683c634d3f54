"""A database server of its own for tests that kill and starve it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.database import Database


@pytest.fixture(scope="module")
def chaos_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("chaos"))
    database.start()
    yield database
    database.stop()
