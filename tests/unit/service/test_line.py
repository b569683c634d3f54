"""The connection of the token path: who waits for it, how long, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from service.errors import Unavailable
from service.postgres.breaker import Breaker
from service.postgres.line import Line


@dataclass
class FakeAnswer:
    """`psycopg.AsyncCursor`: `rows` of None is a statement that gives none."""

    rows: list[dict[str, Any]] | None

    @property
    def description(self) -> Sequence[str] | None:
        return None if self.rows is None else []

    async def fetchall(self) -> list[dict[str, Any]]:
        assert self.rows is not None
        return self.rows


class FakeConnection:
    """`psycopg.AsyncConnection`, as far as a line uses it: each statement does the next of what it was told."""

    def __init__(self, *happens: str) -> None:
        self._happens = list(happens)
        self._busy = False
        self.closed = False
        self.done: list[str] = []

    async def execute(self, statement: str, parameters: Any, *, prepare: bool) -> FakeAnswer:
        assert prepare
        assert not self._busy, "two at a time"
        self._busy = True
        try:
            return await self._answer(statement, parameters)
        finally:
            self._busy = False

    async def _answer(self, statement: str, parameters: Any) -> FakeAnswer:
        await asyncio.sleep(0)
        match self._happens.pop(0) if self._happens else "done":
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "breaks":
                self.closed = True
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            case "is locked":
                raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        self.done.append(statement)
        return FakeAnswer([parameters] if statement.startswith("SELECT") else None)

    async def close(self) -> None:
        self.closed = True


class Server:
    """Gives out connections in order; a text instead of one is why there is none."""

    def __init__(self, *connections: FakeConnection | str) -> None:
        self._connections = list(connections)

    async def connect(self) -> Any:
        connection = self._connections.pop(0)
        if isinstance(connection, str):
            raise psycopg.OperationalError(connection)
        return connection


@pytest.fixture
async def breaker() -> AsyncIterator[Breaker]:
    async def never() -> None:
        raise Unavailable("still away")

    breaker = Breaker(never)
    yield breaker
    await breaker.close()


@pytest.fixture
def make_line(breaker: Breaker) -> Callable[..., Line]:
    return lambda *connections: Line(Server(*connections).connect, breaker, patience_seconds=0.05)


async def test_one_connection_serves_all_statements(make_line: Callable[..., Line]) -> None:
    connection = FakeConnection()
    line = make_line(connection)
    for statement in ("one", "two"):
        await line.execute(statement, {})
    assert connection.done == ["one", "two"]
    await line.close()
    assert connection.closed


async def test_a_query_gives_its_rows_and_any_other_statement_none(make_line: Callable[..., Line]) -> None:
    line = make_line(FakeConnection())
    assert await line.execute("SELECT %(n)s AS n", {"n": 1}) == [{"n": 1}]
    assert await line.execute("INSERT", {"n": 1}) == []


async def test_who_comes_while_another_waits_is_next(make_line: Callable[..., Line]) -> None:
    connection = FakeConnection()
    line = make_line(connection)
    await asyncio.gather(*(line.execute(statement, {}) for statement in ("one", "two", "three")))
    assert connection.done == ["one", "two", "three"]


async def test_a_statement_that_finds_its_connection_broken_is_made_again(make_line: Callable[..., Line]) -> None:
    old, new = FakeConnection("done", "breaks"), FakeConnection()
    line = make_line(old, new)
    for statement in ("one", "two", "three"):
        await line.execute(statement, {})
    assert (old.done, new.done) == (["one"], ["two", "three"])


async def test_it_is_made_again_once(make_line: Callable[..., Line], breaker: Breaker) -> None:
    line = make_line(FakeConnection("done", "breaks"), FakeConnection("breaks"), FakeConnection())
    await line.execute("one", {})
    with pytest.raises(Unavailable, match="closed the connection"):
        await line.execute("two", {})
    assert not breaker.open
    await line.execute("three", {})


async def test_a_lock_is_a_refusal_and_the_connection_stays(make_line: Callable[..., Line], breaker: Breaker) -> None:
    connection = FakeConnection("is locked")
    line = make_line(connection)
    with pytest.raises(Unavailable, match="lock timeout"):
        await line.execute("one", {})
    await line.execute("two", {})
    assert connection.done == ["two"]
    assert not breaker.open


@pytest.mark.parametrize(("why", "opens"), [("connection refused", True), ("FATAL: sorry, too many clients", False)])
async def test_only_a_server_that_is_away_keeps_the_others_waiting(
    make_line: Callable[..., Line], breaker: Breaker, why: str, opens: bool
) -> None:
    line = make_line(why)
    with pytest.raises(Unavailable, match=why):
        await line.execute("one", {})
    assert breaker.open is opens


async def test_a_server_that_neither_answers_nor_gives_up_is_not_waited_for(
    make_line: Callable[..., Line], breaker: Breaker
) -> None:
    line = make_line(FakeConnection("hangs"), FakeConnection())
    with pytest.raises(Unavailable, match=r"no answer within 0\.05 seconds"):
        await line.execute("one", {})
    assert breaker.open
    with pytest.raises(Unavailable, match="no answer"):
        await line.execute("two", {})
