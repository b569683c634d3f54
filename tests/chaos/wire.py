"""A wire between a replica and its database, in the replica's own process: says when a vote's commit comes by.

It reads PostgreSQL's protocol, so it does not matter by which statements, driver or pipeline the replica writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import make_url

_INSERT, _COMMIT = b"INSERT INTO feedback", b"COMMIT"
_QUERY, _PARSE, _BIND = b"Q", b"P", b"B"  # types of messages
_COMMITTED = b"COMMIT\0"  # in the server's answer


class Wire:
    """`before_commit`: the votes have gone out, COMMIT has not. `after_commit`: it has come true, nobody knows yet."""

    def __init__(self, store_url: str, before_commit: Callable[[], object], after_commit: Callable[[], object]) -> None:
        self._url = make_url(store_url)
        self._before_commit = before_commit
        self._after_commit = after_commit

    async def start(self) -> str:
        """The URL under which the database is found behind the wire; it is there as long as the process."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        here = {"host": "127.0.0.1", "port": str(port), "sslmode": "disable", "gssencmode": "disable"}
        return self._url.update_query_dict(here).render_as_string(hide_password=False)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        socket = f"{self._url.query['host']}/.s.PGSQL.{self._url.query['port']}"
        try:
            from_server, to_server = await asyncio.open_unix_connection(socket)
        except OSError:  # to the client the database is away
            writer.close()
            return
        talk = _Talk(self._before_commit, self._after_commit)
        ways = (talk.out(reader, to_server), talk.back(from_server, writer))
        await asyncio.wait(
            [asyncio.create_task(_until_it_breaks(way)) for way in ways], return_when=asyncio.FIRST_COMPLETED
        )
        for end in (to_server, writer):
            end.close()


async def _until_it_breaks(way: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await way


class _Talk:
    """One connection."""

    def __init__(self, before_commit: Callable[[], object], after_commit: Callable[[], object]) -> None:
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._inserts: set[bytes] = set()  # names of the prepared statements that write votes
        self._voting = False  # in this transaction
        self._committing = False

    async def out(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        length = await client.readexactly(4)  # the first message has no type
        server.write(length + await client.readexactly(int.from_bytes(length) - 4))
        while True:
            head = await client.readexactly(5)
            body = await client.readexactly(int.from_bytes(head[1:]) - 4)
            self._look(head[:1], body)
            server.write(head + body)
            await server.drain()

    async def back(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await server.read(1 << 16):
            if self._committing and _COMMITTED in data:
                self._committing = False
                self._after_commit()
            client.write(data)
            await client.drain()

    def _look(self, type: bytes, body: bytes) -> None:
        if type == _PARSE:
            name, query = body.split(b"\0")[:2]
            (self._inserts.add if _INSERT in query else self._inserts.discard)(name)
        else:
            name, query = b"", body.rstrip(b"\0") if type == _QUERY else b""
        if _INSERT in query or (type == _BIND and body.split(b"\0")[1] in self._inserts):
            self._voting = True
        if query == _COMMIT and self._voting:
            self._voting, self._committing = False, True
            self._before_commit()
