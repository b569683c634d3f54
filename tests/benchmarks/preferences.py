"""From votes to pairs in a store that is large: 1,000 new votes beside 200,000 that were matched, on 1 M completions.

What is promised: pairs of the new votes within 2 s, and every read of an operator within 100 ms. The peer makes all
pairs anew at each look, as one does who keeps none.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import httpx
from sqlalchemy import create_engine, text

from service.api.auth import Doorman
from service.api.edge import application
from service.api.preferences import preference_routes
from service.collecting import Collector
from service.overview import Overview
from service.postgres.embedded import EmbeddedDatabase
from service.settings import Settings
from service.store.database import migrate
from service.store.store import Store
from tests.benchmarks.filling import Size, fill, forget_rounds, vote

READS = (
    "", "?status=paired", "?status=left_out", "?reason=already_learned", "?reason=user_cap", "?reason=truncated",
    "?user=user-77", "?user=nobody", "?app=app-2", "?tag=tone", "?tag=nothing", "?source=siblings", "?source=correction",
    "?objective=kto&status=thumb", "?limit=1000", "?after=1000",
)  # fmt: skip
REPEATS = 5
REBUILT = 5_000  # prompts that the peer makes anew; the whole is as many times longer as it has more


def main(size: Size | None = None) -> None:
    size = size or Size()
    with tempfile.TemporaryDirectory() as folder:
        database = EmbeddedDatabase(Path(folder))
        database.start()
        try:
            migrate(database.url)
            engine = create_engine(database.url)
            began = time.monotonic()
            fill(engine, size)
            print(f"  filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            title = f"{size.completions:,} completions, {2 * size.pairs:,} votes matched, 1,000 new votes"
            print(f"{title}; {size.open:,} pairs open, the others learned:")
            asyncio.run(_measure(database.url, 0))
            print(f"peer, makes all pairs anew: {asyncio.run(_rebuild(database.url, size)):.0f} s")
            forget_rounds(engine, size)
            print(f"as if no round had ever run: {size.pairs:,} pairs open")
            asyncio.run(_measure(database.url, 1))
            engine.dispose()
        finally:
            database.stop()


async def _measure(url: str, run: int) -> None:
    store = Store(url)
    collector = Collector(store, Settings())
    overview = Overview(collector, store, Settings())
    await overview.bring_up_to_date()
    await vote(store, run)
    matching = await _seconds(collector.matcher.catch_up)
    looking = await _seconds(collector.look)
    total = f"{matching + looking:6.2f} s = matching {matching:.2f} + choosing {looking:.2f}"
    print(f"  pairs of 1,000 new votes    {total}")
    guarding = await _seconds(overview.refresh)
    print(f"  guards' word kept for reads {guarding:6.2f} s (in the background, where pairs are many)")
    await _reads(store, overview)
    await store.close()


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _reads(store: Store, overview: Overview) -> None:
    app = application("operations", max_body_bytes=1 << 20)
    app.include_router(preference_routes(overview, store, Doorman(store.keys, insecure=True)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heliotrope") as client:
        for path in (*(f"/ops/preferences{query}" for query in READS), "/ops/quarantine"):
            waits, rows = await _read(client, path)
            first, later = 1e3 * waits[0], 1e3 * median(waits[1:])
            print(f"  GET {path:45} first {first:6.1f} ms  then {later:6.1f} ms  {rows:5} rows")


async def _read(client: httpx.AsyncClient, path: str) -> tuple[list[float], int]:
    """Seconds of each read, and how many rows it has."""
    waits, rows = [], 0
    for _ in range(REPEATS):
        began = time.perf_counter()
        answer = await client.get(path)
        waits.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
        rows = len(answer.json().get("votes", answer.json().get("data", ())))
    return waits, rows


async def _rebuild(url: str, size: Size) -> float:
    """Seconds for all prompts, from those for some of them."""
    store = Store(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO stale_prompts (app, prompt_digest) SELECT app, prompt_digest FROM feedback "
                 "WHERE completion_id LIKE 'chatcmpl-%' AND choice_index = 0 ORDER BY seq LIMIT :prompts"),
            {"prompts": REBUILT},
        )  # fmt: skip
    engine.dispose()
    seconds = await _seconds(Collector(store, Settings()).matcher.catch_up)
    await store.close()
    return seconds * size.pairs / REBUILT
