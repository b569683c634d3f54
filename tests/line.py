"""One kept-alive connection that asks chats: just enough HTTP, for a client library would take longer than the server."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

DONE = "[DONE]"


@dataclass
class Reply:
    """What came back, and when; seconds count from the moment the request was sent."""

    status: int
    headers: dict[str, str]
    parts: list[bytes] = field(default_factory=list)  # of the body, as they came
    first_seconds: float = 0.0  # until the first of them
    seconds: float = 0.0  # until the last

    @property
    def body(self) -> Any:
        return json.loads(b"".join(self.parts))

    @property
    def events(self) -> list[str]:
        """What the server-sent events carry."""
        text = b"".join(self.parts).decode()
        return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


class Line:
    """Opens its connection when it is asked, and again after it broke. Raises `OSError` or `EOFError` when it breaks."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = (host, port)
        self._head = f"host: {host}:{port}\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        content = json.dumps(body).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"POST {path} HTTP/1.1\r\n{self._head}{extra}content-length: {len(content)}\r\n\r\n"
        began = time.perf_counter()
        try:
            reader, writer = self._streams = self._streams or await asyncio.open_connection(*self._address)
            writer.write(head.encode() + content)
            reply = await _head(reader)
            await _body(reader, reply, began)
        except BaseException:  # whatever is left of an answer must not be taken for the next one
            self.close()
            raise
        if reply.headers.get("connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _head(reader: asyncio.StreamReader) -> Reply:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return Reply(int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs})


async def _body(reader: asyncio.StreamReader, reply: Reply, began: float) -> None:
    if reply.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\n"), 16):
            part = await reader.readexactly(size + 2)
            reply.first_seconds = reply.first_seconds or time.perf_counter() - began
            reply.parts.append(part[:-2])
        await reader.readuntil(b"\n")
    else:
        reply.parts.append(await reader.readexactly(int(reply.headers["content-length"])))
    reply.seconds = time.perf_counter() - began
    reply.first_seconds = reply.first_seconds or reply.seconds
