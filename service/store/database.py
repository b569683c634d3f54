"""The database: brought to the schema that this program knows, and refused when it cannot keep a promise.

The embedded one (`embedded.py`) or one named by URL: it makes no difference here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, func, select

from service.errors import Unavailable
from service.postgres.sessions import CONNECT_TIMEOUT_SECONDS
from service.postgres.trouble import connection_errors
from service.store.tables import MIGRATE_LOCK

MIGRATIONS = Path(__file__).parent / "migrations"
DURABILITY_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes")  # each must not be "off"


def migrate(url: str, schema: str = "head") -> None:
    """Brings the database to the newest schema; of several processes that start at once, one does it.

    An older `schema` is for going back to an older version of this program; what it cannot hold is lost, as each step
    in `migrations/versions/` says, and "base" keeps nothing.

    Raises `Unavailable` when the database cannot be reached, is not durable, or is newer than this program.
    """
    engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})
    try:
        with connection_errors(), engine.begin() as connection:
            check_durability(connection)
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATE_LOCK)))
            _change(connection, schema)
    finally:
        engine.dispose()


def check_durability(connection: Connection) -> None:
    """Invariant 4: acknowledged means durable. Raises `Unavailable` with the remedy when the database cheats."""
    for setting in DURABILITY_SETTINGS:
        if connection.execute(select(func.current_setting(setting))).scalar_one() == "off":
            raise Unavailable(
                f"The database runs with {setting} = off: a vote that was acknowledged could be lost. "
                f"Set {setting} = on for the server, the database and the user '{_user(connection)}'.",
                code="database_not_durable",
            )


def _user(connection: Connection) -> str:
    return connection.execute(select(func.current_user())).scalar_one()


def known_schemas() -> set[str]:
    """The schemas that this program can bring to its own."""
    return {step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()}


@cache
def newest_schema() -> str:
    """The schema that this program works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there are migrations"
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _change(connection: Connection, schema: str) -> None:
    """To a newer schema or back to an older one, as the database has another."""
    config = _config()
    config.attributes["connection"] = connection
    heads = MigrationContext.configure(connection).get_current_heads()
    unknown = set(heads) - known_schemas()
    if unknown:
        raise Unavailable(
            f"The database has the schema '{min(unknown)}', which this version does not know: a newer one made it. "
            "Upgrade heliotrope, or name another database.",
            code="database_newer",
        )
    older = bool(heads) and (schema == "base" or schema < max(heads))  # schemas are numbered; "head" is behind them
    (command.downgrade if older else command.upgrade)(config, schema)
