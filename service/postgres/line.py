"""One connection for statements that come one after another: no pool, no ping, one round trip each.

For the token path, where every wait is a user's. Knows no table. What else there is to do with the database goes
through `sessions.py`, whose breaker this shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, LiteralString

import psycopg

from service.postgres.breaker import Breaker
from service.postgres.trouble import is_crowded, unavailable

PATIENCE_SECONDS = 5.0  # with a database that neither answers nor gives up

Connection = psycopg.AsyncConnection[Any]


class Line:
    """Opened by the first statement, and anew after an outage. One caller at a time; one event loop only."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        breaker: Breaker,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._connect = connect  # to a connection where each statement is a transaction of its own
        self._breaker = breaker
        self._patience_seconds = patience_seconds
        self._connection: Connection | None = None

    async def execute(self, statement: LiteralString, parameters: Mapping[str, Any]) -> None:
        """Durable when it returns. A statement that finds the connection broken is made again on a new one, so it
        must be one that changes nothing the second time. Raises `Unavailable`.
        """
        self._breaker.check()
        executing = asyncio.create_task(self._execute(statement, parameters))
        try:
            done, _ = await asyncio.wait({executing}, timeout=self._patience_seconds)
        except asyncio.CancelledError:
            executing.cancel()
            raise
        if not done:
            self._connection = None  # it belongs to the statement, which takes it along
            executing.cancel()
            silence = unavailable(f"no answer within {self._patience_seconds:g} seconds")
            self._breaker.trip(silence)
            raise silence
        await executing

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _execute(self, statement: LiteralString, parameters: Mapping[str, Any], *, again: bool = True) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            connection, again = await self._connected(), False
        try:
            await connection.execute(statement, parameters, prepare=True)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if not (again and connection.closed):
                raise unavailable(error) from error
            await self._execute(statement, parameters, again=False)  # it broke since its last statement

    async def _connected(self) -> Connection:
        try:
            self._connection = await self._connect()
        except psycopg.OperationalError as error:
            refusal = unavailable(error)
            if not is_crowded(error):
                self._breaker.trip(refusal)
            raise refusal from error
        return self._connection
