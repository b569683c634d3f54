"""The connection pool. Knows no table. Every noun of the store opens its transactions here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL, NullPool, Select, exc, make_url
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.postgres.breaker import Breaker
from service.postgres.line import Line, Row
from service.postgres.trouble import connection_errors, is_crowded, unavailable

APPLICATION = "heliotrope"  # how our connections are listed in `pg_stat_activity`
POOL_CONNECTIONS = 5  # per process; each replica and the Conductor hold one pool
BURST_CONNECTIONS = 10  # opened above the pool under load and closed again
CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 2  # for a free connection: who comes too late is refused, so nothing piles up
LOCK_TIMEOUT_SECONDS = 3  # for a row or table that somebody else holds
STATEMENT_TIMEOUT_SECONDS = 30
SILENCE_TIMEOUT_SECONDS = 10  # of a network that swallows what is sent

Pipeline = psycopg.AsyncConnection[Any]


class Sessions:
    """Transactions on one asynchronous engine. Use it in one event loop only: connections belong to theirs."""

    def __init__(self, url: str) -> None:
        # Pinged before use: a restarted database costs a reconnect, not a failed request.
        pool = {"pool_size": POOL_CONNECTIONS, "max_overflow": BURST_CONNECTIONS, "pool_pre_ping": True}
        self._engine = _engine(url, pool_timeout=POOL_TIMEOUT_SECONDS, **pool)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")  # has the same pool
        self._probe_engine = _engine(url, poolclass=NullPool)  # the pool may be full of connections that hang
        self._breaker = Breaker(self._probe)
        self._reading = self.line()

    @asynccontextmanager
    async def transaction(
        self, *, statement_seconds: float = STATEMENT_TIMEOUT_SECONDS
    ) -> AsyncIterator[AsyncConnection]:
        """Committed, and so durable (invariant 4), when the block ends; rolled back when it raises.

        `statement_seconds` is how long each statement may take, for work that takes longer than a request's.
        Raises `Unavailable` (code `storage_unavailable`) when the database cannot be reached or gives up.
        """
        async with self._connection(self._engine) as connection, connection.begin():
            if statement_seconds != STATEMENT_TIMEOUT_SECONDS:
                await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(statement_seconds * 1000)}")
            yield connection

    @asynccontextmanager
    async def statements(
        self, *, statement_seconds: float = STATEMENT_TIMEOUT_SECONDS
    ) -> AsyncIterator[AsyncConnection]:
        """Each statement is a transaction of its own, durable when it has answered: one round trip, not three.

        Raises as `transaction` does.
        """
        async with self._connection(self._autocommit) as connection:
            if statement_seconds != STATEMENT_TIMEOUT_SECONDS:
                await connection.exec_driver_sql(f"SET statement_timeout = {round(statement_seconds * 1000)}")
            try:
                yield connection
            finally:
                if statement_seconds != STATEMENT_TIMEOUT_SECONDS:
                    await connection.exec_driver_sql("RESET statement_timeout")

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Pipeline]:
        """A transaction that is `piped`. Committed as `transaction` does, and raises as it does."""
        async with self.transaction() as connection, piped(connection) as driver:
            yield driver
            await driver.commit()  # goes out with the last statement

    async def read(self, query: bytes, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a `compiled` query that is short and asked for often: all of them share one connection.

        A fifth of the processor time that it takes by way of SQLAlchemy and the pool. Raises what `Line.execute` raises.
        """
        return await self._reading.execute(query, parameters or {})

    def line(self) -> Line:
        """A connection of its own."""
        url = self._engine.url
        connect_args = {**self._engine.dialect.create_connect_args(url)[1], **_connect_args(url)}
        return Line(
            lambda: psycopg.AsyncConnection[Row].connect(autocommit=True, row_factory=dict_row, **connect_args),
            self._breaker,
        )

    async def reach(self) -> None:
        """Raises `Unavailable` unless the database answers now."""
        async with self.statements() as connection:
            await connection.exec_driver_sql("SELECT 1")

    async def close(self) -> None:
        await self._breaker.close()
        await self._reading.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def _connection(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        self._breaker.check()
        connected = False
        with connection_errors():
            try:
                async with engine.connect() as connection:
                    connected = True
                    yield connection
            except (exc.OperationalError, exc.InterfaceError) as error:
                if not connected and not is_crowded(error):
                    self._breaker.trip(unavailable(error))
                raise

    async def _probe(self) -> None:
        with connection_errors():
            async with self._probe_engine.connect():
                pass


@asynccontextmanager
async def piped(connection: AsyncConnection) -> AsyncIterator[Pipeline]:
    """Statements of the connection's transaction that go out before the last one has answered: only reading rows waits.

    All have answered when the block ends. A statement costs a quarter of what it costs by way of SQLAlchemy.
    """
    driver: Pipeline | None = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    async with driver.pipeline():
        yield driver


def compiled(query: Select[Any]) -> bytes:
    """Once and for all, as `Sessions.read` takes it; the query names its parameters with `bindparam`."""
    return str(query.compile(dialect=postgresql.psycopg.dialect())).encode()


def _engine(url: str, **pool: Any) -> AsyncEngine:
    return create_async_engine(url, connect_args=_connect_args(make_url(url)), **pool)


def _connect_args(url: URL) -> dict[str, Any]:
    """To a server that gives up by itself what takes too long; what the URL says of that has the last word."""
    timeouts = {"lock_timeout": LOCK_TIMEOUT_SECONDS, "statement_timeout": STATEMENT_TIMEOUT_SECONDS}
    options = [f"-c {name}={seconds}s" for name, seconds in timeouts.items()]
    options.append(str(url.query.get("options", "")))
    return {
        "application_name": APPLICATION,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": SILENCE_TIMEOUT_SECONDS * 1000,  # milliseconds
        "options": " ".join(options).strip(),
    }
