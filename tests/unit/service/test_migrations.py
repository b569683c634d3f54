"""The steps between schemas, both ways, with data in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, make_url, text

from service.contracts import AuditEntry
from service.store.audit import pseudonym
from service.store.audit_chain import Chain
from service.store.database import known_schemas, migrate
from service.store.tables import metadata

OLDEST, CANDIDATES, EVERY_SIGNAL, SWAPS, TRUST, BASE_MODEL, NEWEST = (f"000{n}" for n in range(1, 8))

FIRST_LIGHT = """
INSERT INTO keys (id, role, app, secret_sha256) VALUES ('k', 'app', 'shop', 'x');
INSERT INTO completions (id, app, adapter, model, "user", metadata, messages, sampling, tokenizer_fingerprint,
    prompt_digest, prompt_token_ids) VALUES
    ('c1', 'shop', 'base', 'policy', 'ada', '{}', '[{"role": "system"}, {"role": "user"}]', '{}', 'f', 'p1', '{1,2}'),
    ('c2', 'shop', 'base', 'policy', null, '{}', '[{"role": "user"}, {"role": "assistant"}, {"role": "user"}]', '{}',
     'f', 'p2', '{3}'),
    ('c3', 'shop', 'base', 'policy', null, '{}', null, '{}', 'f', 'p2', null);
INSERT INTO choices SELECT id, n, 'text', '{7}', 'stop' FROM completions, generate_series(0, 1) AS n;
INSERT INTO feedback (feedback_id, app, completion_id, choice_index, "user", kind, rating, comment, tags, body_sha256)
    SELECT 'fb-' || completion_id || choice_index, 'shop', completion_id, choice_index, 'ada', 'rating',
        CASE choice_index WHEN 0 THEN 'up' ELSE 'down' END, 'so', '{a}', 'x' FROM choices;
INSERT INTO imported_pairs (id, messages, chosen, rejected) VALUES ('i', '[]', 'yes', 'no');
INSERT INTO rounds (state, requested_by, body_sha256, settings) VALUES ('promoted', 'tess', 'x', '{}');
INSERT INTO round_pairs (round, pair_id, split, origin, chosen_completion_id, chosen_choice_index,
    rejected_completion_id, rejected_choice_index, votes) VALUES
    (1, 'pair', 'train', 'votes', 'c1', 0, 'c1', 1, '{1,2}'), (1, 'thumb', 'train', 'votes', 'c2', 0, null, null, '{3}'),
    (1, 'i', 'train', 'import', null, null, null, null, '{}');
INSERT INTO round_events (round, kind, data) VALUES (1, 'state', '{}');
INSERT INTO adapters (name, ordinal, parent, round, weights_sha256, manifest_sha256, directory)
    VALUES ('policy-0001-aaaaaaaa', 1, 'base', 1, 'w', 'm', '/a');
INSERT INTO audit (who, action, subject, detail) VALUES ('tess', 'promote', 'policy-0001-aaaaaaaa', '{}');
UPDATE route SET generation = 1, stable = 'policy-0001-aaaaaaaa';
"""


class Database:
    """One that is brought from schema to schema."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url)

    def run(self, statements: str) -> list[tuple[Any, ...]]:
        with self._engine.begin() as connection:
            result = connection.exec_driver_sql(statements)
            return [tuple(row) for row in result] if result.returns_rows else []

    def tables(self) -> set[str]:
        return set(inspect(self._engine).get_table_names())

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables, in no order of theirs."""
        return {t: self.run(f'SELECT row_to_json(t)::text FROM "{t}" t ORDER BY 1') for t in sorted(self.tables())}

    def differences(self) -> list[Any]:
        """Between what is there and `tables.py`."""
        with self._engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    server = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS stairs"))
        connection.execute(text("CREATE DATABASE stairs"))
    database = Database(make_url(database_url).set(database="stairs").render_as_string(hide_password=False))
    yield database
    database.close()
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE stairs"))
    server.dispose()


def test_every_schema_has_its_place_on_the_stairs() -> None:
    assert known_schemas() == {OLDEST, CANDIDATES, EVERY_SIGNAL, SWAPS, TRUST, BASE_MODEL, NEWEST}


def test_all_the_way_down_nothing_is_left_and_up_again_everything_is_there(database: Database) -> None:
    migrate(database.url)
    migrate(database.url, "base")
    assert database.tables() == {"alembic_version"}
    assert database.run(
        "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"
    ) == [(0,)]
    migrate(database.url)
    assert database.differences() == []


def test_what_the_first_version_kept_is_there_in_every_later_one_and_again_after_the_way_back(
    database: Database,
) -> None:
    migrate(database.url, OLDEST)
    database.run(FIRST_LIGHT)
    before = database.content()
    migrate(database.url)
    assert database.differences() == []
    assert database.run("SELECT id, single_turn, redacted FROM completions ORDER BY id") == [
        *(("c1", True, False), ("c2", False, False), ("c3", False, False))
    ]
    assert database.run(
        "SELECT DISTINCT completion_id, target, prompt_digest FROM feedback WHERE choice_index = 0 ORDER BY 1"
    ) == [*(("c1", "c1/0", "p1"), ("c2", "c2/0", "p2"), ("c3", "c3/0", "p2"))]
    assert database.run("SELECT pair_id, source FROM round_pairs ORDER BY 1") == [
        *(("i", "import"), ("pair", "same_prompt"), ("thumb", "thumb"))
    ]
    assert database.run("SELECT app, prompt_digest FROM stale_prompts ORDER BY 2") == [("shop", "p1"), ("shop", "p2")]
    assert database.run("SELECT format, stale FROM imported_pairs") == [("trl", True)]
    migrate(database.url, OLDEST)
    assert database.content() == before


def test_what_a_round_took_along_is_named_for_all_that_it_settles(database: Database) -> None:
    migrate(database.url, OLDEST)
    database.run(FIRST_LIGHT)
    migrate(database.url, BASE_MODEL)
    database.run("UPDATE round_pairs SET split = 'duplicate' WHERE pair_id = 'i'")
    before = database.content()
    migrate(database.url)
    assert database.run("SELECT pair_id FROM round_pairs WHERE split = 'settled'") == [("i",)]
    migrate(database.url, BASE_MODEL)
    assert database.content() == before


def test_an_audit_from_before_the_chain_is_chained_and_names_nobody(database: Database) -> None:
    migrate(database.url, SWAPS)
    database.run("""
        INSERT INTO audit (who, action, subject, detail) VALUES
            ('tess', 'promote', 'policy-0001-aaaaaaaa', '{"from": "base", "share": 0.50}'),
            ('tess', 'quarantine_dropped', '1', '{"app": "shop", "user": "ada", "kind": "burst"}'),
            ('tess', 'quarantine_dropped', '2', '{"app": "shop", "user": "", "kind": "burst"}')
    """)
    migrate(database.url)
    names = ("seq", "at", "who", "action", "subject", "detail", "digest")
    rows = database.run(f"SELECT {', '.join(names)} FROM audit ORDER BY seq")
    entries = [AuditEntry.model_validate(dict(zip(names, row, strict=True))) for row in rows]
    assert [entry.detail.get("person") for entry in entries] == [None, pseudonym("ada", "shop"), None]
    assert not any("user" in entry.detail for entry in entries)
    chain = Chain().follow(entries).ended()
    assert (chain.entries, chain.fault) == (3, None)


def test_a_schema_that_the_database_has_already_changes_nothing(database: Database) -> None:
    migrate(database.url, CANDIDATES)
    before = database.content()
    migrate(database.url, CANDIDATES)
    assert database.content() == before


def test_the_way_back_drops_what_the_older_schema_cannot_hold_and_nothing_else(database: Database) -> None:
    migrate(database.url, OLDEST)
    database.run(FIRST_LIGHT)
    migrate(database.url)
    database.run("""
        INSERT INTO feedback (feedback_id, app, completion_id, choice_index, kind, target, rival_completion_id,
            rival_choice_index, tags, prompt_digest, body_sha256)
            VALUES ('side', 'shop', 'c1', 0, 'comparison', 'c1/0 c1/1', 'c1', 1, '{}', 'p1', 'x');
        INSERT INTO feedback (feedback_id, app, completion_id, choice_index, kind, target, correction, tags,
            prompt_digest, body_sha256) VALUES ('better', 'shop', 'c1', 0, 'correction', 'c1/0', 'so', '{}', 'p1', 'x');
        INSERT INTO imported_pairs (id, messages, chosen, format) VALUES ('thumb', '[]', 'yes', 'kto');
        INSERT INTO quarantine (kind, app, "user", why, evidence) VALUES ('burst', 'shop', 'ada', 'so many', '{}');
        INSERT INTO quarantined_votes SELECT 1, id FROM quarantine;
        UPDATE rounds SET candidate = '{"directory": "/up"}';
    """)
    migrate(database.url, CANDIDATES)
    assert database.run("SELECT count(*) FROM feedback") == [(6,)]
    assert database.run("SELECT id FROM imported_pairs") == [("i",)]
    assert database.run("SELECT candidate FROM rounds") == [({"directory": "/up"},)]
    migrate(database.url)
    assert database.differences() == []
    assert database.run("SELECT count(*) FROM stale_prompts") == [(2,)]
