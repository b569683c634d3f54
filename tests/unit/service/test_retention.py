"""What is deleted when its time is over, and what stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.contracts import Adapter, Round, RoundState
from service.errors import Conflict
from service.keeping import snapshots
from service.keeping.retention import Sweeper
from service.keeping.settings import RetentionSettings
from service.store import retention
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import BASE, Completion, Route
from tests.adapter_files import write_adapter

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
    return Sweeper(store, RetentionSettings(**days), str(folder), str(folder / "adapters"))


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


# --- adapters -----------------------------------------------------------------------------------------


@pytest.fixture
async def line(store: Store, tmp_path: Path) -> list[str]:
    """Six adapters, each continuing the one before it; the first of them continues the base."""
    names: list[str] = []
    for ordinal in range(1, 7):
        files = write_adapter(tmp_path / "adapters" / f"policy-{ordinal}", ordinal)
        adapter = Adapter(
            name=files.name,
            ordinal=ordinal,
            parent=names[-1] if names else BASE,
            round=None,
            weights_sha256="a" * 64,
            manifest_sha256=files.manifest_sha256,
            directory=files.directory,
            pair_digest=None,
            verdict=None,
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
        await store.adapters.publish(adapter, fence=None)
        names.append(files.name)
    return names


async def _kept(store: Store) -> set[str]:
    """What the store says is kept, and is there."""
    adapters = await store.adapters.list()
    assert [a.deleted_at is None for a in adapters] == [_is_there(a) for a in adapters]
    kept = {adapter.name for adapter in adapters if adapter.deleted_at is None}
    assert kept == await store.adapters.published()
    return kept


def _is_there(adapter: Adapter) -> bool:
    return Path(adapter.directory).is_dir()


async def test_by_default_all_adapters_are_kept(store: Store, tmp_path: Path, line: list[str]) -> None:
    await _sweeper(store, tmp_path).sweep()
    assert await _kept(store) == set(line)


async def test_the_newest_adapters_are_kept_and_what_the_oldest_of_them_continues(
    store: Store, tmp_path: Path, line: list[str]
) -> None:
    sweeper = _sweeper(store, tmp_path, adapters_kept=2)
    assert await sweeper.sweep() == {"adapters": 3}
    assert await _kept(store) == set(line[3:])
    entries = [entry for entry in await store.audit.list() if entry.action == "delete_adapter"]
    assert {(entry.who, entry.subject) for entry in entries} == {("retention", name) for name in line[:3]}
    assert entries[0].detail == {"kept": 2, "reason": "retention.adapters_kept"}
    assert await sweeper.sweep() == {"adapters": 0}


@pytest.mark.parametrize("place", ["stable", "previous", "candidate", "baseline"])
async def test_what_the_route_names_is_kept(store: Store, tmp_path: Path, line: list[str], place: str) -> None:
    route = Route.model_validate({"generation": 1, "stable": line[5], place: line[1]})
    await store.route.change(0, route, who="tess", action="promote", subject=line[1], detail={})
    await _sweeper(store, tmp_path, adapters_kept=1).sweep()
    assert await _kept(store) == {line[0], line[1], line[4], line[5]}


async def test_what_a_replica_has_leased_is_kept_until_the_lease_ends(
    store: Store, tmp_path: Path, line: list[str], sql: Sql
) -> None:
    await store.adapters.lease("one", frozenset({line[2]}), 60)
    await store.adapters.lease("two", frozenset({line[2], line[0]}), 60)
    await store.adapters.lease("two", frozenset({line[2]}), 60)  # lets go of the other
    sweeper = _sweeper(store, tmp_path, adapters_kept=1)
    await sweeper.sweep()
    assert await _kept(store) == {line[1], line[2], line[4], line[5]}
    sql("UPDATE adapter_leases SET until = now() - interval '1 second'")
    await sweeper.sweep()
    assert await _kept(store) == {line[4], line[5]}


@pytest.mark.parametrize(("state", "kept"), [(RoundState.TRAINING, True), (RoundState.REJECTED, False)])
async def test_what_a_running_round_starts_from_is_kept(
    store: Store,
    tmp_path: Path,
    line: list[str],
    sql: Sql,
    start_round: Callable[..., Awaitable[Round]],
    state: RoundState,
    kept: bool,
) -> None:
    n = (await start_round(state)).n
    sql(f"UPDATE rounds SET parent = '{line[2]}' WHERE n = {n}")
    await _sweeper(store, tmp_path, adapters_kept=1).sweep()
    assert (line[2] in await _kept(store)) is kept


async def test_a_sweep_that_was_killed_is_ended_by_the_next(
    store: Store, tmp_path: Path, line: list[str], sql: Sql
) -> None:
    sql(f"UPDATE adapters SET deleted_at = now() WHERE name = '{line[0]}'")
    (tmp_path / "adapters" / ".policy-1.going").mkdir()
    assert await _sweeper(store, tmp_path, adapters_kept=6).sweep() == {"adapters": 0}
    assert await _kept(store) == set(line[1:])
    assert _names(tmp_path / "adapters", ".*") == []


async def test_files_that_lie_elsewhere_are_not_ours_to_delete(
    store: Store, tmp_path: Path, line: list[str], sql: Sql
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    sql(f"UPDATE adapters SET directory = '{elsewhere}' WHERE name = '{line[0]}'")
    await _sweeper(store, tmp_path, adapters_kept=1).sweep()
    assert elsewhere.is_dir()
    assert line[0] not in await store.adapters.published()


async def test_of_a_deletion_and_a_promotion_at_once_one_wins(store: Store, line: list[str]) -> None:
    route = Route(generation=1, stable=line[0])
    promotion, deleted = await asyncio.gather(
        store.route.change(0, route, who="tess", action="promote", subject=line[0], detail={}),
        store.adapters.delete_unneeded(1, who="retention"),
        return_exceptions=True,
    )
    assert not isinstance(deleted, BaseException)
    if isinstance(promotion, BaseException):
        assert isinstance(promotion, Conflict) and promotion.code == "adapter_deleted"
    assert (line[0] in deleted) is isinstance(promotion, BaseException)
