"""Durable votes through HTTP: how many a second, and how long one waits at a moderate pace.

The feedback routes run under uvicorn, as they do in a replica of Ray Serve, with the embedded PostgreSQL; the load
comes from another process. Beside ours: a peer that commits each vote by itself, and the same application without a
store, which no store can be quicker than.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from service.contracts import Role
from service.postgres.embedded import EmbeddedDatabase
from service.store.database import migrate
from service.store.store import Store
from tests.benchmarks.load import COMPLETIONS, CONNECTIONS

_PACE = 200  # votes a second at which the wait is measured
_WARM_UP_SECONDS, _SECONDS = 2, 8
_SIDES = {"ours": "ours", "plain": "one transaction a vote", "bare": "no store"}
_SEED = text("""
    WITH completion AS (
        INSERT INTO completions (id, app, adapter, model, metadata, sampling, tokenizer_fingerprint, prompt_digest,
            single_turn)
        SELECT 'chatcmpl-' || n, 'shop', 'base', 'policy', '{}', '{}', 'f', 'prompt ' || n % 500, true
        FROM generate_series(0, :completions - 1) AS n
        RETURNING id
    )
    INSERT INTO choices (completion_id, choice_index, text, finish_reason)
    SELECT id, choice_index, 'an answer', 'stop' FROM completion, generate_series(0, 1) AS choice_index
""")


def main() -> None:
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        database = EmbeddedDatabase(Path(folder))
        database.start()
        try:
            migrate(database.url)
            key = asyncio.run(_app_key(database.url))
            for side in _SIDES:
                measured[side] = _measure(side, database.url, key)
        finally:
            database.stop()
    print(f"Durable votes through HTTP, {CONNECTIONS} connections, or {_PACE} votes/s for the wait:")
    for side, name in _SIDES.items():
        rate, full, paced = (measured[side][part] for part in ("rate", "full", "paced"))
        waits = f"p50 {1e3 * paced['p50_seconds']:5.1f} ms  p99 {1e3 * paced['p99_seconds']:5.1f} ms"
        under_load = f"at full load p99 {1e3 * full['p99_seconds']:.0f} ms, {full['refused']} refused"
        print(f"  {name:22}  {rate:6,.0f} votes/s  {waits}  ({under_load})")
    rates = {side: measured[side]["rate"] for side in _SIDES}
    print(f"  ours is {rates['ours'] / rates['plain']:.1f} x the peer, {rates['ours'] / rates['bare']:.0%} of no store")


async def _app_key(url: str) -> str:
    store = Store(url)
    _, key = await store.keys.issue(Role.APP, "shop")
    await store.close()
    return key


def _measure(side: str, url: str, key: str) -> dict[str, Any]:
    """Every vote that was acknowledged must be in the table, and no other."""
    print(f"  {_SIDES[side]} ...", file=sys.stderr, flush=True)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE feedback, stale_prompts, choices, completions CASCADE"))
        connection.execute(_SEED, {"completions": COMPLETIONS})
    with _server(side, url) as port:
        loads = [
            _load(port, key, seconds, pace)
            for seconds, pace in ((_WARM_UP_SECONDS, 0), (_SECONDS, 0), (_SECONDS, _PACE))
        ]
    with engine.begin() as connection:
        kept = connection.execute(text("SELECT count(DISTINCT feedback_id) FROM feedback")).scalar_one()
    engine.dispose()
    assert side == "bare" or kept == sum(load["votes"] for load in loads)
    _, full, paced = loads
    return {"rate": full["votes"] / full["seconds"], "full": full, "paced": paced}


@contextmanager
def _server(side: str, url: str) -> Iterator[int]:
    """Its port, once it listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.vote_server", side, url, str(port)])
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if server.poll() is not None:
                raise RuntimeError(f"the server '{side}' ended with {server.returncode}")
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def _load(port: int, key: str, seconds: float, votes_per_second: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.load", str(port), key, str(seconds), str(votes_per_second)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
