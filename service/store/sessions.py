"""The connection pool, and the one place where trouble with the database becomes `Unavailable`.

Knows no table. Every noun of the store opens its transactions here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from service.errors import BadRequest, Unavailable

POOL_CONNECTIONS = 5  # per process; each replica and the Conductor hold one pool
BURST_CONNECTIONS = 10  # opened above the pool under load and closed again
CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10

_READ_ONLY = "25006"  # SQLSTATE of a write to a standby, as after a failover


class Sessions:
    """Transactions on one asynchronous engine. Use it in one event loop only: connections belong to theirs."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=POOL_CONNECTIONS,
            max_overflow=BURST_CONNECTIONS,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=True,  # a restarted database costs a reconnect, not a failed request
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Committed, and so durable (invariant 4), when the block ends; rolled back when it raises.

        Raises `Unavailable` (code `storage_unavailable`) when the database cannot be reached or gives up.
        """
        with connection_errors():
            async with self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        await self._engine.dispose()


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turns what the driver raises about the connection or about a value into the service's own errors.

    Mistakes in statements stay as they are: those are ours.
    """
    try:
        yield
    except exc.DataError as error:
        raise BadRequest(
            f"A value cannot be stored ({_first_line(error)}). Remove NUL characters and numbers out of range.",
            code="invalid_value",
        ) from error
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        raise _unavailable(error) from error
    except exc.DBAPIError as error:
        if not error.connection_invalidated and getattr(error.orig, "sqlstate", None) != _READ_ONLY:
            raise
        raise _unavailable(error) from error


def _unavailable(error: exc.SQLAlchemyError) -> Unavailable:
    return Unavailable(
        f"The database does not answer ({_first_line(error)}). Try again shortly.",
        code="storage_unavailable",
    )


def _first_line(error: exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
