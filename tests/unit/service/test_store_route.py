from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from service.contracts import Adapter
from service.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from service.store.store import Store
from serving.contracts import Route

FIRST, SECOND = "policy-0001-aaaaaaaa", "policy-0002-bbbbbbbb"
AUDITED: dict[str, Any] = {"who": "tess", "action": "promote", "subject": FIRST, "detail": {"reason": "better"}}


@pytest.fixture(autouse=True)
async def published(store: Store) -> None:
    for ordinal, name in enumerate((FIRST, SECOND), start=1):
        adapter = Adapter(
            name=name,
            ordinal=ordinal,
            parent="base",
            round=None,
            weights_sha256="a" * 64,
            manifest_sha256="b" * 64,
            directory="/",
            pair_digest=None,
            verdict=None,
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
        await store.adapters.publish(adapter, fence=None)


async def test_a_new_store_serves_the_base(store: Store) -> None:
    assert await store.route.read() == Route(generation=0, stable="base")


async def test_a_change_is_kept_and_audited(store: Store) -> None:
    new = Route(generation=1, stable=FIRST, previous="base")
    assert await store.route.change(0, new, **AUDITED) == new == await store.route.read()
    (entry,) = await store.audit.list()
    assert (entry.who, entry.action, entry.subject, entry.detail) == tuple(AUDITED.values())


async def test_a_change_of_a_route_that_moved_is_refused_and_leaves_no_trace(store: Store) -> None:
    kept = await store.route.change(0, Route(generation=1, stable=FIRST, previous="base"), **AUDITED)
    with pytest.raises(PreconditionFailed) as refused:
        await store.route.change(0, Route(generation=1, stable=SECOND), **AUDITED)
    assert refused.value.code == "route_moved"
    assert await store.route.read() == kept
    assert len(await store.audit.list()) == 1


async def test_of_simultaneous_changes_one_wins(store: Store) -> None:
    wanted = [Route(generation=1, stable=name, previous="base") for name in (FIRST, SECOND)]
    answers = await asyncio.gather(*(store.route.change(0, new, **AUDITED) for new in wanted), return_exceptions=True)
    (winner,) = [answer for answer in answers if isinstance(answer, Route)]
    assert sum(isinstance(answer, PreconditionFailed) for answer in answers) == 1
    assert await store.route.read() == winner
    assert len(await store.audit.list()) == 1


async def test_the_generation_grows_by_exactly_one(store: Store) -> None:
    for generation in (0, 2):
        with pytest.raises(AssertionError):
            await store.route.change(0, Route(generation=generation, stable=FIRST), **AUDITED)


async def test_an_adapter_that_was_never_published_cannot_be_served(store: Store) -> None:
    with pytest.raises(NotFound, match="policy-0009"):
        await store.route.change(0, Route(generation=1, stable="policy-0009-ffffffff"), **AUDITED)
    assert (await store.route.read()).generation == 0


async def test_an_adapter_whose_files_were_deleted_cannot_be_served(store: Store) -> None:
    await store.adapters.delete_unneeded(1, who="retention")
    with pytest.raises(Conflict, match=r"retention\.adapters_kept") as refused:
        await store.route.change(0, Route(generation=1, stable=SECOND, candidate=FIRST), **AUDITED)
    assert refused.value.code == "adapter_deleted"
    assert (await store.route.read()).generation == 0


async def test_a_reason_that_cannot_be_stored_is_refused_and_nothing_has_changed(store: Store) -> None:
    unstorable: dict[str, Any] = AUDITED | {"detail": {"reason": "a\0b"}}
    with pytest.raises(BadRequest) as refused:
        await store.route.change(0, Route(generation=1, stable=FIRST), **unstorable)
    assert refused.value.code == "invalid_value"
    assert (await store.route.read()).generation == 0


async def test_shares_are_kept(store: Store) -> None:
    split = Route(
        generation=1, stable=FIRST, candidate=SECOND, candidate_share=0.05, baseline="base", baseline_share=0.01
    )
    assert await store.route.change(0, split, **AUDITED) == split == await store.route.read()


async def test_the_audit_lists_the_newest_first_and_continues_behind_an_entry(store: Store) -> None:
    for subject in ("a", "b", "c"):
        await store.audit.write(who="tess", action="import", subject=subject, detail={})
    newest, *_ = await store.audit.list(limit=1)
    assert newest.subject == "c"
    assert [entry.subject for entry in await store.audit.list(after=newest.seq)] == ["b", "a"]
