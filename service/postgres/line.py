"""One connection for statements that come one after another: no pool, no ping, one round trip each.

For the token path, where every wait is a user's. Knows no table. What else there is to do with the database goes
through `sessions.py`, whose breaker this shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, LiteralString

import psycopg

from service.errors import Unavailable
from service.postgres.breaker import Breaker
from service.postgres.trouble import connection_errors, is_crowded, unavailable

PATIENCE_SECONDS = 5.0  # with a database that neither answers nor gives up

Statement = LiteralString | bytes
Row = dict[str, Any]  # by column
Connection = psycopg.AsyncConnection[Row]


class Line:
    """Opened by the first statement, and anew after an outage. Callers wait for one another; one event loop only."""

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
        self._turn = asyncio.Lock()

    async def execute(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
        """Its rows, if it gives any; durable when it returns. A statement that finds the connection broken is made again
        on a new one, so it must be one that changes nothing the second time.

        Raises `Unavailable`, and `BadRequest` for a value that no database holds.
        """
        async with self._turn:
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
            return await executing

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _execute(self, statement: Statement, parameters: Mapping[str, Any], *, again: bool = True) -> list[Row]:
        connection = self._connection
        if connection is None or connection.closed:
            connection, again = await self._connected(), False
        try:
            with connection_errors():
                answered = await connection.execute(statement, parameters, prepare=True)
                return [] if answered.description is None else await answered.fetchall()
        except Unavailable:
            if not (again and connection.closed):
                raise
            return await self._execute(statement, parameters, again=False)  # it broke since its last statement

    async def _connected(self) -> Connection:
        try:
            self._connection = await self._connect()
        except psycopg.OperationalError as error:
            refusal = unavailable(error)
            if not is_crowded(error):
                self._breaker.trip(refusal)
            raise refusal from error
        return self._connection
