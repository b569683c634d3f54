from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from service.contracts import Adapter, Check, Round, RoundState, Verdict
from service.errors import Conflict, NotFound
from service.store.round_rows import StaleRound
from service.store.store import Store

StartRound = Callable[..., Awaitable[Round]]


def _adapter(ordinal: int = 1, **fields: Any) -> Adapter:
    defaults: dict[str, Any] = {
        "name": f"policy-{ordinal:04}-aaaaaaaa",
        "ordinal": ordinal,
        "parent": "base",
        "round": None,
        "weights_sha256": "a" * 64,
        "manifest_sha256": "b" * 64,
        "directory": f"/adapters/{ordinal}",
        "pair_digest": "c" * 64,
        "verdict": Verdict(promote=True, checks=(Check(name="finite", outcome="pass", value=1.0, why="all are"),)),
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Adapter(**(defaults | fields))


async def test_ordinals_are_never_given_twice(store: Store) -> None:
    ordinals = await asyncio.gather(*(store.adapters.next_ordinal() for _ in range(8)))
    assert sorted(ordinals) == list(range(1, 9))


async def test_a_published_adapter_is_found_and_listed_newest_first(store: Store) -> None:
    first, second = _adapter(1), _adapter(2, verdict=None)
    for adapter in (first, second):
        await store.adapters.publish(adapter, fence=None)
    assert await store.adapters.get(first.name) == first
    assert await store.adapters.list() == (second, first)
    assert await store.adapters.parents() == {first.name: first.parent, second.name: second.parent}


async def test_publishing_the_same_files_again_changes_nothing(store: Store) -> None:
    await store.adapters.publish(_adapter(), fence=None)
    await store.adapters.publish(_adapter(), fence=None)
    assert await store.adapters.list() == (_adapter(),)


@pytest.mark.parametrize(
    "other", [{"manifest_sha256": "d" * 64}, {"name": "policy-0001-dddddddd"}], ids=["name", "ordinal"]
)
async def test_other_files_under_a_used_name_or_ordinal_are_refused(store: Store, other: dict[str, Any]) -> None:
    await store.adapters.publish(_adapter(), fence=None)
    with pytest.raises(Conflict):
        await store.adapters.publish(_adapter(**other), fence=None)
    assert await store.adapters.list() == (_adapter(),)


async def test_the_attempt_that_is_judged_may_publish(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.JUDGING)).n
    await store.adapters.publish(_adapter(round=n), fence=(n, 0))
    assert (await store.adapters.get(_adapter().name)).round == n


@pytest.mark.parametrize("state", [RoundState.TRAINING, RoundState.FAILED])
async def test_a_round_that_is_not_judged_publishes_nothing(
    store: Store, start_round: StartRound, state: RoundState
) -> None:
    n = (await start_round(state)).n
    with pytest.raises(StaleRound):
        await store.adapters.publish(_adapter(round=n), fence=(n, 0))
    assert await store.adapters.list() == ()


async def test_a_fenced_attempt_publishes_nothing(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.JUDGING)).n
    await store.rounds.next_attempt(n, 0)
    with pytest.raises(StaleRound):
        await store.adapters.publish(_adapter(round=n), fence=(n, 0))
    assert await store.adapters.list() == ()


async def test_an_unknown_adapter_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="policy-0009"):
        await store.adapters.get("policy-0009-ffffffff")


async def test_a_lease_is_asked_for_what_is_not_published_too(store: Store) -> None:
    """A candidate on trial is leased as well: nobody deletes it, for its files are a round's."""
    await store.adapters.publish(_adapter(1), fence=None)
    await store.adapters.lease("one", frozenset({_adapter(1).name, _adapter(2).name}), 60)
    await store.adapters.lease("one", frozenset(), 60)
    assert await store.adapters.delete_unneeded(0, who="retention") == (_adapter(1).name,)
    assert await store.adapters.published() == frozenset()
    assert (await store.adapters.get(_adapter(1).name)).deleted_at is not None


async def test_leases_of_many_replicas_at_once_do_not_get_in_each_others_way(store: Store) -> None:
    names = frozenset(_adapter(ordinal).name for ordinal in range(1, 5))
    for ordinal in range(1, 5):
        await store.adapters.publish(_adapter(ordinal), fence=None)
    await asyncio.gather(
        *(store.adapters.lease(f"replica {number % 4}", names, 60) for number in range(12)),
        *(store.adapters.delete_unneeded(4, who="retention") for _ in range(3)),
    )
    assert await store.adapters.published() == names
