"""The plan of `service/planning.py` against a store filled as far as fits here: bytes, rates, and what retention takes.

    python -m tests.benchmarks.planning
    python -m tests.benchmarks.planning --completions 1000000     some 5 GB under the temporary folder

Texts are slices of Python's own handbook and token ids are spread as words are, so that they compress as chats do. Old
rows are written by the database itself; the rates are those of the service's own statements on top of them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from sqlalchemy import Engine, create_engine, text

from service.planning import Load, plan, wal_bytes
from service.postgres.embedded import EmbeddedDatabase
from service.store.database import migrate
from service.store.store import Store
from service.store.tables import choices, completions
from serving.contracts import Choice, Completion

COMPLETIONS = 200_000
DAYS = 100  # over which they are spread, one share a day
LOAD = Load(prompt_tokens=200, answer_tokens=100)
CHARACTERS_PER_TOKEN = 4.3
POOL, VOCABULARY = 2000, 50_000
GROUPS = (1, 16, 64)
RECORDED = 6_000  # for each size of group
CHUNK = 100_000

_CLEAN = "CREATE TEMP TABLE pool (n integer PRIMARY KEY, question text, prompt integer[], answer text, said integer[])"
_FILL_COMPLETIONS = """
    INSERT INTO completions (id, app, adapter, model, "user", metadata, messages, sampling, tokenizer_fingerprint,
        prompt_digest, prompt_token_ids, single_turn, first_token_seconds, seconds, created_at)
    SELECT 'chatcmpl-' || md5(i::text), 'app-' || i % 4, 'policy-' || lpad((i * 20 / :all)::text, 4, '0') || '-3fa9c1d2', 'policy',
        'user-' || i % 20000, '{}', json_build_array(json_build_object('role', 'user', 'content', question))::jsonb,
        '{"max_tokens": 512, "temperature": 0.7}', md5('t') || md5('t'), encode(sha256(i::text::bytea), 'hex'), prompt, true,
        0.2, 2.5, now() - (:all - i) * interval '1 day' * :days / :all
    FROM generate_series(CAST(:start AS bigint), :stop - 1) AS i JOIN pool ON pool.n = i % :pool
"""
_FILL_CHOICES = """
    INSERT INTO choices (completion_id, choice_index, text, token_ids, finish_reason, tokens)
    SELECT 'chatcmpl-' || md5(i::text), 0, answer, said, 'stop', cardinality(said)
    FROM generate_series(CAST(:start AS bigint), :stop - 1) AS i JOIN pool ON pool.n = i % :pool
"""


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.planning")
    parser.add_argument("--completions", type=int, default=COMPLETIONS)
    count = parser.parse_args(arguments).completions
    with tempfile.TemporaryDirectory() as folder:
        database = EmbeddedDatabase(Path(folder))
        database.start()
        try:
            migrate(database.url)
            engine = create_engine(database.url)
            _fill(engine, count)
            _sizes(engine, count)
            asyncio.run(_rates(database.url, engine, count))
            asyncio.run(_retention(database.url, engine, count))
            engine.dispose()
        finally:
            database.stop()


def _fill(engine: Engine, count: int) -> None:
    began = time.perf_counter()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET synchronous_commit = off"))
        connection.execute(text("SET session_replication_role = replica"))  # foreign keys are right as they are made
        connection.execute(text(_CLEAN))
        connection.execute(text("INSERT INTO pool VALUES (:n, :question, :prompt, :answer, :said)"), _pool())
        for start in range(0, count, CHUNK):
            numbers = {"start": start, "stop": min(start + CHUNK, count), "all": count, "days": DAYS, "pool": POOL}
            connection.execute(text(_FILL_COMPLETIONS), numbers)
            connection.execute(text(_FILL_CHOICES), numbers)
            print(f"  {numbers['stop']:,} completions ...", file=sys.stderr, flush=True)
        connection.execute(text("VACUUM (FREEZE, ANALYZE)"))  # else autovacuum would write between what is measured
    seconds = time.perf_counter() - began
    print(f"{count:,} completions of {LOAD.prompt_tokens} + {LOAD.answer_tokens} tokens, filled in {seconds:.0f} s")


def _pool() -> list[dict[str, Any]]:
    draw, prose = random.Random(0), "\n".join(topics.values())
    return [
        {
            "n": n, "question": _slice(prose, LOAD.prompt_tokens, draw), "prompt": _ids(LOAD.prompt_tokens, draw),
            "answer": _slice(prose, LOAD.answer_tokens, draw), "said": _ids(LOAD.answer_tokens, draw),
        }
        for n in range(POOL)
    ]  # fmt: skip


def _slice(prose: str, tokens: int, draw: random.Random) -> str:
    length = int(tokens * CHARACTERS_PER_TOKEN)
    start = draw.randrange(len(prose) - length)
    return prose[start : start + length]


def _ids(tokens: int, draw: random.Random) -> list[int]:
    """Frequent ones are small, as Zipf has it."""
    return [int(VOCABULARY ** draw.random()) for _ in range(tokens)]


def _sizes(engine: Engine, count: int) -> None:
    planned = plan(LOAD, completions=count)
    with engine.begin() as connection:
        found: dict[str, int] = {}
        for table in (completions, choices):
            rows, indexes = connection.execute(
                text("SELECT pg_table_size(:table), pg_indexes_size(:table)"), {"table": table.name}
            ).one()
            found["rows"] = found.get("rows", 0) + rows
            found["indexes"] = found.get("indexes", 0) + indexes
            print(f"  {table.name}: {rows / count:.0f} bytes a completion, indexes {indexes / count:.0f}")
        depths = connection.execute(text(
            "SELECT relname, relpages, reltuples FROM pg_class WHERE relkind = 'i' AND oid IN "
            "(SELECT indexrelid FROM pg_index WHERE indrelid IN ('completions'::regclass, 'choices'::regclass))"
        )).all()  # fmt: skip
    for what, predicted in (("rows", planned.row_bytes), ("indexes", planned.index_bytes)):
        print(
            f"  {what}: {found[what] / 1e9:.2f} GB, planned {predicted / 1e9:.2f}: {found[what] / predicted:.2f} of it"
        )
    for name, pages, _ in sorted(depths):
        print(f"    {name}: {pages * 8192 / count:.0f} bytes a completion, {_levels(pages)} levels")


def _levels(pages: int) -> int:
    """Of a B-tree whose inner pages hold some 150 keys of ours each."""
    levels = 1
    while pages > 1:
        pages, levels = -(-pages // 150), levels + 1
    return levels


async def _rates(url: str, engine: Engine, kept: int) -> None:
    """What the service's own statement writes a second, one connection, at each size of a group."""
    store, draw, prose = Store(url), random.Random(1), "\n".join(topics.values())
    for group in GROUPS:
        rows = [_completion(draw, prose) for _ in range(RECORDED if group > 1 else RECORDED // 4)]
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CHECKPOINT"))
            began, wal = time.perf_counter(), _wal(engine)
        for start in range(0, len(rows), group):
            await asyncio.gather(*(store.completions.record(row) for row in rows[start : start + group]))
        seconds = time.perf_counter() - began
        planned = wal_bytes(LOAD, kept, len(rows))
        print(
            f"  {group} in a commit: {len(rows) / seconds:,.0f} completions/s, {len(rows) / group / seconds:,.0f} commits/s, "
            f"{(_wal(engine) - wal) / len(rows):,.0f} bytes of WAL a completion, planned {planned:,.0f}"
        )
    await store.close()


def _completion(draw: random.Random, prose: str) -> Completion:
    answer = Choice(
        index=0, text=_slice(prose, LOAD.answer_tokens, draw), token_ids=tuple(_ids(LOAD.answer_tokens, draw)),
        finish_reason="stop",
    )  # fmt: skip
    return Completion(
        id=f"chatcmpl-{draw.getrandbits(128):032x}", app="app-1", adapter="policy-0020-3fa9c1d2", model="policy",
        created_at=datetime.now(UTC), user=f"user-{draw.randrange(20_000)}", metadata={}, store=True,
        messages=[{"role": "user", "content": _slice(prose, LOAD.prompt_tokens, draw)}],
        sampling={"max_tokens": 512, "temperature": 0.7}, tokenizer_fingerprint="f" * 64,
        prompt_token_ids=tuple(_ids(LOAD.prompt_tokens, draw)), choices=(answer,),
    )  # fmt: skip


def _wal(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")).scalar_one())


async def _retention(url: str, engine: Engine, count: int) -> None:
    """A day goes, and then another: by the sweeper's own statements, and as a table that is dropped would."""
    store = Store(url)
    for days in (DAYS - 1, DAYS - 2):
        began = time.perf_counter()
        dropped = await store.retention.drop_unvoted_completions(days)
        seconds = time.perf_counter() - began
        print(f"  retention: {dropped:,} completions deleted in {seconds:.1f} s, {dropped / seconds:,.0f} a second")
    await store.close()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE day AS SELECT * FROM completions LIMIT :most"), {"most": count // DAYS})
    began = time.perf_counter()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE day"))
    print(f"  as many rows in a table of their own: dropped in {1000 * (time.perf_counter() - began):.0f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
