"""What is deleted when its time is over, and what stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.contracts import Round, RoundState
from service.keeping import snapshots
from service.keeping.retention import Sweeper
from service.keeping.settings import RetentionSettings
from service.store import retention
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion

MakeCompletion = Callable[..., Completion]
Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def sql(database_engine: Engine) -> Sql:
    def run(statement: str) -> list[tuple[Any, ...]]:
        with database_engine.begin() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    return run


@pytest.fixture
async def filled(store: Store, sql: Sql, make_completion: MakeCompletion) -> Store:
    """Four completions: old and new, with a vote and without; each vote is as old as its completion."""
    for age in ("old", "new"):
        for voted in ("voted", "silent"):
            id = f"{age}-{voted}"
            await store.completions.record(make_completion(id, prompt_token_ids=tuple(id.encode())))
            if voted == "voted":
                body = FeedbackBody(completion_id=id, rating=Rating.UP, comment="thanks", feedback_id=id)
                await store.feedback.put("shop", body)
    for table, id in (("completions", "id"), ("feedback", "completion_id")):
        sql(f"UPDATE {table} SET created_at = now() - interval '40 days' WHERE {id} LIKE 'old%'")
        sql(f"UPDATE {table} SET created_at = now() - interval '29 days' WHERE {id} LIKE 'new%'")
    sql("DELETE FROM stale_prompts")
    return store


def _sweeper(store: Store, folder: Path, **days: int) -> Sweeper:
    return Sweeper(store, RetentionSettings(**days), folder)


async def test_by_default_everything_is_kept(filled: Store, sql: Sql, tmp_path: Path) -> None:
    assert await _sweeper(filled, tmp_path).sweep() == {}
    assert sql("SELECT count(*) FROM completions") == [(4,)]
    assert await filled.audit.list() == ()


async def test_an_old_completion_goes_or_loses_its_words_where_votes_speak_of_it(
    filled: Store, sql: Sql, tmp_path: Path
) -> None:
    [(digest,)] = sql("SELECT prompt_digest FROM completions WHERE id = 'old-voted'")
    sweeper = _sweeper(filled, tmp_path, completion_days=30)
    assert await sweeper.sweep() == {"completions": 1, "completions_emptied": 1}
    assert sql("SELECT id FROM completions ORDER BY id") == [("new-silent",), ("new-voted",), ("old-voted",)]
    kept = sql("""SELECT messages, prompt_token_ids, "user", metadata, prompt_digest, text, token_ids
                  FROM completions JOIN choices ON completion_id = id WHERE id = 'old-voted'""")
    assert kept == [(None, None, None, {}, digest, None, None)]
    assert sql("SELECT count(*) FROM choices WHERE text IS NOT NULL") == [(2,)]
    assert sql("SELECT prompt_digest FROM stale_prompts") == [(digest,)]
    assert await sweeper.sweep() == {"completions": 0, "completions_emptied": 0}
    [entry] = await filled.audit.list()
    assert (entry.who, entry.action, entry.detail) == (
        *("retention", "sweep"),
        {"completions": 1, "completions_emptied": 1},
    )


async def test_old_votes_go_and_their_prompts_are_matched_anew(filled: Store, sql: Sql, tmp_path: Path) -> None:
    assert await _sweeper(filled, tmp_path, feedback_days=30).sweep() == {"votes": 1}
    assert sql("SELECT feedback_id FROM feedback") == [("new-voted",)]
    assert sql("SELECT completions.id FROM completions JOIN stale_prompts USING (app, prompt_digest)") == [
        ("old-voted",)
    ]


async def test_what_votes_spoke_of_goes_with_the_last_of_them(filled: Store, sql: Sql, tmp_path: Path) -> None:
    found = await _sweeper(filled, tmp_path, feedback_days=30, completion_days=30).sweep()
    assert found == {"votes": 1, "completions": 2, "completions_emptied": 0}
    assert sql("SELECT id FROM completions ORDER BY id") == [("new-silent",), ("new-voted",)]


async def test_more_than_a_batch_goes_in_several(filled: Store, sql: Sql, tmp_path: Path) -> None:
    many = 2 * retention.MOST_AT_ONCE + 1
    sql(f"""INSERT INTO completions (id, app, adapter, model, "user", metadata, messages, sampling,
        tokenizer_fingerprint, prompt_digest, prompt_token_ids, single_turn, redacted, created_at) SELECT 'many-' || n, app, adapter, model, "user", metadata, messages, sampling,
        tokenizer_fingerprint, prompt_digest, prompt_token_ids, single_turn, redacted, now() - interval '50 days'
        FROM completions, generate_series(1, {many}) AS n WHERE id = 'old-silent'""")
    assert (await _sweeper(filled, tmp_path, completion_days=30).sweep())["completions"] == many + 1
    assert sql("SELECT count(*) FROM completions") == [(3,)]


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(pattern))


async def test_snapshots_of_rounds_that_are_over_go_and_the_running_ones_stays(
    store: Store, sql: Sql, tmp_path: Path, start_round: Callable[..., Awaitable[Round]]
) -> None:
    over = await start_round(RoundState.REJECTED, pairs=())
    recent = await start_round(RoundState.REJECTED, pairs=())
    running = await start_round(RoundState.TRAINING, pairs=())
    sql(f"UPDATE rounds SET updated_at = now() - interval '40 days' WHERE n <> {recent.n}")
    for round in (over, recent, running):
        attempt = tmp_path / f"{round.n:04d}" / "attempt-1"
        attempt.mkdir(parents=True)
        (attempt.parent / snapshots.SNAPSHOT).touch()
        (attempt / snapshots.SAMPLES).touch()
        (attempt / "curves.svg").touch()
    sweeper = _sweeper(store, tmp_path, snapshot_days=30)
    assert await sweeper.sweep() == {"snapshots": 1}
    assert _names(tmp_path, "*.parquet") == [f"{n:04d}/{snapshots.SNAPSHOT}" for n in (recent.n, running.n)]
    assert _names(tmp_path / f"{over.n:04d}", "*.*") == ["attempt-1/curves.svg"]
    assert await sweeper.sweep() == {"snapshots": 0}
