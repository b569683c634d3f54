"""The lookout: what no single event tells is rung, once each, and the rest is looked at whoever is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text, update

from service.alarm_settings import AlarmSettings
from service.alarms.watch import Lookout
from service.contracts import Check, Round, RoundState, Verdict
from service.store.store import Store
from service.store.tables import quarantine, rounds, route
from serving.contracts import ReplicaStatus
from serving.errors import HostAbsent


async def kinds(store: Store) -> list[str]:
    """Of all that was rung, the oldest first."""
    return [alarm.kind for alarm in reversed(await store.alarms.list())]


class Replicas:
    """What replicas say of themselves."""

    def __init__(self) -> None:
        self.statuses: list[ReplicaStatus] = []
        self.gone = False

    def say(self, name: str = "one", generation: int = 0, unlogged: int = 0, error: str | None = None) -> None:
        self.statuses = [
            ReplicaStatus(
                replica=name, generation=generation, stable="base", wanted=(), loaded=(), in_flight={},
                error=error, unlogged=unlogged,
            )
        ]  # fmt: skip

    async def status(self) -> list[ReplicaStatus]:
        if self.gone:
            raise HostAbsent("no replica runs yet")
        return self.statuses


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


def lookout(store: Store, replicas: Replicas, free_bytes: int = 1 << 40, **settings: Any) -> Lookout:
    return Lookout(store, replicas, AlarmSettings(**settings), Path("/state"), free_bytes=lambda _: free_bytes)


async def test_when_all_is_well_nothing_is_rung(store: Store, replicas: Replicas) -> None:
    replicas.say()
    await lookout(store, replicas, no_round_days=1).look()
    assert await kinds(store) == []


async def test_each_item_in_quarantine_is_rung_once_and_names_no_user(
    store: Store, replicas: Replicas, database_engine: Engine
) -> None:
    def hold(user: str, status: str = "held") -> None:
        item = {"kind": "burst", "app": "shop", "user": user, "why": f"{user} votes too often", "evidence": {}}
        with database_engine.begin() as connection:
            connection.execute(insert(quarantine).values(item | {"status": status}))

    look = lookout(store, replicas)
    hold("ada")
    hold("bob", "released")
    for _ in range(2):
        await look.look()
    hold("eve")
    await look.look()
    alarms = await store.alarms.list()
    assert [alarm.kind for alarm in alarms] == ["votes_quarantined"] * 2
    said = "".join(alarm.model_dump_json() for alarm in alarms)
    assert "burst" in said
    assert "shop" in said
    assert not any(user in said for user in ("ada", "bob", "eve"))


async def test_a_replica_that_lags_for_longer_than_allowed_is_rung_once_for_each_change(
    store: Store, replicas: Replicas, database_engine: Engine
) -> None:
    def change(generation: int, seconds_ago: int) -> None:
        with database_engine.begin() as connection:
            moment = text(f"now() - interval '{seconds_ago} seconds'")
            connection.execute(update(route).values(generation=generation, updated_at=moment))

    look = lookout(store, replicas, lag_seconds=60)
    replicas.say(generation=1, error="AdapterRefused: no")
    change(2, seconds_ago=50)
    await look.look()
    assert await kinds(store) == []
    change(2, seconds_ago=70)
    for _ in range(2):
        await look.look()
    (alarm,) = await store.alarms.list()
    assert (alarm.kind, alarm.subject) == ("replica_lagging", "one")
    assert "AdapterRefused: no" in alarm.message
    change(3, seconds_ago=70)
    await look.look()
    assert await kinds(store) == ["replica_lagging"] * 2


async def test_answers_without_a_record_are_rung_when_they_are_added_and_not_for_old_ones(
    store: Store, replicas: Replicas
) -> None:
    look = lookout(store, replicas)
    replicas.say(unlogged=5)
    await look.look()
    assert await kinds(store) == []  # this Conductor was not there when they were lost
    replicas.say(unlogged=7)
    await look.look()
    (alarm,) = await store.alarms.list()
    assert (alarm.kind, alarm.detail) == ("unlogged", {"replicas": {"one": 2}})
    replicas.say(unlogged=9)
    await look.look()
    assert await kinds(store) == ["unlogged"]  # once an hour


async def test_low_space_is_rung_once_a_day(store: Store, replicas: Replicas) -> None:
    replicas.say()
    await lookout(store, replicas, free_bytes=1 << 30).look()
    assert await kinds(store) == []
    for _ in range(2):  # also after a restart
        await lookout(store, replicas, free_bytes=(1 << 30) - 1).look()
    assert await kinds(store) == ["store_low_space"]


async def test_without_a_round_in_time_it_is_rung_once_in_each_period(
    store: Store,
    replicas: Replicas,
    start_round: Callable[..., Awaitable[Round]],
    database_engine: Engine,
) -> None:
    def ended(days_ago: float) -> None:
        with database_engine.begin() as connection:
            connection.execute(text(f"UPDATE round_events SET at = now() - {days_ago} * interval '1 day'"))

    await start_round(RoundState.PROMOTED)
    look = lookout(store, replicas, no_round_days=7)
    ended(6.9)
    await look.look()
    assert await kinds(store) == []
    ended(8)
    for _ in range(2):
        await look.look()
    assert await kinds(store) == ["no_round_in_time"]


async def test_before_the_first_round_time_counts_from_the_first_answer(
    store: Store, replicas: Replicas, make_completion: Callable[..., Any]
) -> None:
    look = lookout(store, replicas, no_round_days=7)
    await look.look()
    assert await kinds(store) == []
    await store.completions.record(make_completion("c", created_at=datetime.now(UTC) - timedelta(days=8)))
    await look.look()
    assert await kinds(store) == ["no_round_in_time"]


@pytest.mark.parametrize(("value", "rings"), [(1.59, False), (1.61, True)])
async def test_drift_is_rung_once_for_an_adapter_that_is_near_its_budget(
    store: Store,
    replicas: Replicas,
    start_round: Callable[..., Awaitable[Round]],
    database_engine: Engine,
    value: float,
    rings: bool,
) -> None:
    round = await start_round(RoundState.PROMOTED)
    check = Check(name="kl_base", outcome="pass", value=value, bound=2.0, why="nats a token")
    verdict = Verdict(promote=True, checks=(check,)).model_dump(mode="json")
    with database_engine.begin() as connection:
        connection.execute(update(rounds).where(rounds.c.n == round.n).values(adapter="base", verdict=verdict))
    look = lookout(store, replicas, drift_near=0.8)
    for _ in range(2):
        await look.look()
    assert await kinds(store) == (["drift_budget_near"] if rings else [])


async def test_without_replicas_the_rest_is_looked_at_all_the_same(store: Store, replicas: Replicas) -> None:
    replicas.gone = True
    await lookout(store, replicas, free_bytes=0).look()
    assert await kinds(store) == ["store_low_space"]
