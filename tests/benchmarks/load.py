"""A load of votes over HTTP, from a process of its own so that it takes no time from the server's.

    python -m tests.benchmarks.load PORT KEY SECONDS VOTES_PER_SECOND

Votes on what `votes.py` has seeded, over kept-alive connections, and prints what it measured as JSON. Zero votes per
second are as many as go: each connection sends its next vote when it has the answer to the last. Otherwise votes leave
by the clock, and a latency counts from the moment at which its vote was due, so that a stall is not hidden. Speaks just
enough HTTP itself: a client library would take longer than the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

CONNECTIONS = 64
COMPLETIONS = 2_000  # seeded, of two choices each
USERS = 1_000


async def load(port: int, key: str, seconds: float, votes_per_second: float) -> dict[str, Any]:
    began = time.perf_counter()
    numbers = itertools.count()
    senders = [_Sender(port, key, random.Random(n)) for n in range(CONNECTIONS)]

    async def due() -> AsyncIterator[float]:
        """The moments at which the votes of one connection are due."""
        while True:
            now = time.perf_counter()
            moment = began + next(numbers) / votes_per_second if votes_per_second else now
            if moment > began + seconds or now > began + seconds:
                return
            await asyncio.sleep(max(0.0, moment - now))
            yield moment

    async def vote(sender: _Sender) -> list[tuple[int, float]]:
        return [(await sender.send(), time.perf_counter() - moment) async for moment in due()]

    answers = [*itertools.chain.from_iterable(await asyncio.gather(*(vote(sender) for sender in senders)))]
    latencies = [seconds for status, seconds in answers if status == 201]
    percentiles = statistics.quantiles(latencies, n=100)
    return {
        "votes": len(latencies),
        "refused": len(answers) - len(latencies),
        "seconds": time.perf_counter() - began,
        "p50_seconds": percentiles[49],
        "p99_seconds": percentiles[98],
    }


class _Sender:
    """One connection."""

    def __init__(self, port: int, key: str, dice: random.Random) -> None:
        self._port = port
        self._head = (
            "POST /feedback HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: "
        ).encode()
        self._dice = dice
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self) -> int:
        """The status of the answer, which is 201 or 503."""
        reader, writer = self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(self._vote()).encode()
        writer.write(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        answer = await reader.readexactly(int(length.partition(b":")[2]))
        status = int(head.split(b" ", 2)[1])
        if status not in (201, 503):
            raise RuntimeError(f"{status}: {answer.decode()}")
        return status

    def _vote(self) -> dict[str, Any]:
        return {
            "completion_id": f"chatcmpl-{self._dice.randrange(COMPLETIONS)}",
            "choice_index": self._dice.randrange(2),
            "rating": self._dice.choice(["up", "down"]),
            "user": f"user-{self._dice.randrange(USERS)}",
            "feedback_id": str(uuid.uuid4()),
        }


if __name__ == "__main__":
    port, key, seconds, votes_per_second = sys.argv[1:]
    print(json.dumps(asyncio.run(load(int(port), key, float(seconds), float(votes_per_second)))))
