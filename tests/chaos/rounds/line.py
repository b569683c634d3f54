"""A word between two processes of a run, over a Unix socket: what Ray's handles of actors and replicas are in a cluster.

One connection a call: the method and its arguments go in, its value or its refusal comes out. Whoever asks is told
whether nobody was there to ask, or somebody was and is no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Answer = Callable[[str, tuple[Any, ...]], Awaitable[Any]]

_LENGTH_BYTES = 8


class Absent(Exception):
    """Nobody listens there: not yet, or no more."""


class Ended(Exception):
    """Whoever was asked ended before it answered."""


class Refused(Exception):
    """The answer is an error, in the words of whoever was asked; `kind` is its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


async def listen(socket: Path, answer: Answer) -> asyncio.Server:
    """Answers calls as long as the process lives. The socket that a killed one left there is replaced."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # who asked is gone
            method, arguments = pickle.loads(await _read(reader))
            try:
                said = (True, await answer(method, arguments))
            except Exception as error:
                said = (False, (type(error).__name__, str(error)))
            _write(writer, said)
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(connected, socket)


async def call(socket: Path, method: str, *arguments: Any, seconds: float) -> Any:
    """What it answers. Raises `Absent`, `Ended`, `Refused`, and `TimeoutError` for a silence of so long."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError as nobody:
        raise Absent(f"nobody listens at {socket.name}") from nobody
    try:
        _write(writer, (method, arguments))
        ok, value = pickle.loads(await asyncio.wait_for(_read(reader), seconds))
    except (OSError, asyncio.IncompleteReadError) as end:
        raise Ended(f"{socket.name} ended in the middle of {method}") from end
    finally:
        writer.close()
    if not ok:
        raise Refused(*value)
    return value


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(_LENGTH_BYTES)))


def _write(writer: asyncio.StreamWriter, value: object) -> None:
    data = pickle.dumps(value)
    writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)
