from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, exc, insert

from service.contracts import Check, Round, RoundState, Verdict
from service.errors import Conflict, NotFound
from service.pairs import Pair, Source
from service.store.round_pairs import SETTLED
from service.store.round_rows import StaleRound
from service.store.store import Store
from service.store.tables import round_pairs, rounds
from training.contracts import HELD_OUT, TRAIN

StartRound = Callable[..., Awaitable[Round]]

FROZEN: dict[str, Any] = {
    "parent": "policy-0001-aaaaaaaa",
    "snapshot": "/pairs.parquet",
    "pair_digest": "d" * 64,
    "adapter_ordinal": 3,
    "funnel": {"votes": 2},
    "rows": 2,
}
PAIRS = [
    Pair(
        id="v",
        source=Source.SIBLINGS,
        prompt_digest="p",
        app="shop",
        chosen=("c1", 0),
        rejected=("c1", 1),
        votes=(4, 9),
        charged_to=("someone",),
        voted_at=datetime(2026, 1, 2, tzinfo=UTC),
    ),
    Pair(
        id="c", source=Source.CORRECTION, prompt_digest="p", app="shop", chosen=None, rejected=("c1", 1), correction=7
    ),
    Pair(id="i", source=Source.IMPORT, prompt_digest="q", app=None, chosen=None, rejected=None),
]


def _request(**fields: Any) -> dict[str, Any]:
    request = {"settings": {"beta": 0.1}, "requested_by": "tess", "note": "first", "idempotency_key": None}
    return request | {"body_sha256": "0" * 64} | fields


async def _states(store: Store, n: int) -> list[tuple[str, int]]:
    events = await store.rounds.events(n)
    return [(event.data["state"], event.data["attempt"]) for event in events if event.kind == "state"]


async def test_a_new_round_is_queued_and_says_who_asked_for_what(store: Store) -> None:
    created, new = await store.rounds.create(**_request())
    assert new
    assert (created.n, created.state, created.attempt) == (1, RoundState.QUEUED, 0)
    assert (created.settings, created.requested_by, created.note) == ({"beta": 0.1}, "tess", "first")
    assert await store.rounds.get(1) == await store.rounds.running() == created
    assert await _states(store, 1) == [("queued", 0)]


async def test_a_repeated_idempotency_key_answers_with_the_first_round_even_when_it_has_ended(
    store: Store,
) -> None:
    first, _ = await store.rounds.create(**_request(idempotency_key="k"))
    await store.rounds.move(first.n, expect=RoundState.QUEUED, to=RoundState.CANCELLED)
    again, new = await store.rounds.create(**_request(idempotency_key="k"))
    assert (again.n, again.state, new) == (first.n, RoundState.CANCELLED, False)


async def test_an_idempotency_key_with_another_body_is_a_conflict(store: Store) -> None:
    await store.rounds.create(**_request(idempotency_key="k"))
    with pytest.raises(Conflict) as refused:
        await store.rounds.create(**_request(idempotency_key="k", body_sha256="1" * 64))
    assert refused.value.code == "idempotency_conflict"


async def test_a_second_round_is_refused_while_one_runs_and_numbers_have_no_gaps(store: Store) -> None:
    await store.rounds.create(**_request())
    with pytest.raises(Conflict, match="Round 1 is queued") as refused:
        await store.rounds.create(**_request(idempotency_key="k"))
    assert refused.value.code == "round_running"
    await store.rounds.move(1, expect=RoundState.QUEUED, to=RoundState.FAILED, reason="no pairs")
    second, _ = await store.rounds.create(**_request())
    assert second.n == 2
    assert [(r.n, r.state, r.reason) for r in await store.rounds.list()] == [
        (2, RoundState.QUEUED, None),
        (1, RoundState.FAILED, "no pairs"),
    ]
    assert [r.n for r in await store.rounds.list(limit=1)] == [2]


async def test_of_simultaneous_creates_one_wins(store: Store) -> None:
    answers = await asyncio.gather(*(store.rounds.create(**_request()) for _ in range(6)), return_exceptions=True)
    conflicts = [answer for answer in answers if isinstance(answer, Conflict)]
    assert {conflict.code for conflict in conflicts} == {"round_running"}
    assert len(conflicts) == 5


async def test_simultaneous_creates_with_one_key_all_get_the_same_round(store: Store) -> None:
    answers = await asyncio.gather(*(store.rounds.create(**_request(idempotency_key="k")) for _ in range(6)))
    assert {round.n for round, _ in answers} == {1}
    assert sum(new for _, new in answers) == 1


async def test_the_database_itself_allows_one_running_round(
    store: Store, start_round: StartRound, database_engine: Engine
) -> None:
    await start_round()
    second = insert(rounds).values(state="training", requested_by="tess", body_sha256="", settings={})
    with pytest.raises(exc.IntegrityError, match="uq_rounds_one_running"), database_engine.begin() as connection:
        connection.execute(second)


async def test_a_move_writes_its_fields_and_its_event(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.TRAINING)).n
    verdict = Verdict(promote=False, checks=(Check(name="finite", outcome="fail", why="a loss is NaN"),))
    await store.rounds.move(
        n, expect=RoundState.TRAINING, to=RoundState.JUDGING, attempt=0, report={"loss": 0.5}, adapter="policy-1"
    )
    moved = await store.rounds.move(
        n, expect=RoundState.JUDGING, to=RoundState.REJECTED, verdict=verdict, reason="a loss is NaN"
    )
    assert moved == await store.rounds.get(n)
    assert (moved.state, moved.verdict, moved.report) == (RoundState.REJECTED, verdict, {"loss": 0.5})
    assert (moved.adapter, moved.reason) == ("policy-1", "a loss is NaN")
    assert await store.rounds.running() is None
    assert [state for state, _ in await _states(store, n)] == [
        "queued",
        "collecting",
        "training",
        "judging",
        "rejected",
    ]


async def test_a_move_may_write_fields_without_leaving_the_state(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.COLLECTING)).n
    before = await _states(store, n)
    here = RoundState.COLLECTING
    await store.rounds.move(n, expect=here, to=here, reason="waits for votes")
    assert (await store.rounds.get(n)).reason == "waits for votes"
    assert await _states(store, n) == before


async def test_a_move_from_a_state_that_was_left_is_stale_and_changes_nothing(
    store: Store, start_round: StartRound
) -> None:
    n = (await start_round(RoundState.TRAINING)).n
    before = await store.rounds.get(n), await store.rounds.events(n)
    with pytest.raises(StaleRound, match="training in attempt 0"):
        await store.rounds.move(n, expect=RoundState.QUEUED, to=RoundState.COLLECTING, reason="late")
    assert (await store.rounds.get(n), await store.rounds.events(n)) == before


async def test_of_simultaneous_moves_one_wins(store: Store, start_round: StartRound) -> None:
    n = (await start_round()).n
    answers = await asyncio.gather(
        *(store.rounds.move(n, expect=RoundState.QUEUED, to=RoundState.COLLECTING) for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, StaleRound) for answer in answers) == 4
    assert await _states(store, n) == [("queued", 0), ("collecting", 0)]


async def test_a_new_attempt_fences_the_old_one_off(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.TRAINING)).n
    assert (await store.rounds.next_attempt(n, 0)).attempt == 1
    with pytest.raises(StaleRound):
        await store.rounds.next_attempt(n, 0)
    with pytest.raises(StaleRound):
        await store.rounds.move(n, expect=RoundState.TRAINING, to=RoundState.JUDGING, attempt=0)
    await store.rounds.move(n, expect=RoundState.TRAINING, to=RoundState.JUDGING, attempt=1)


async def test_a_round_that_ended_gets_no_new_attempt_and_is_never_moved(store: Store, start_round: StartRound) -> None:
    n = (await start_round(RoundState.PROMOTED)).n
    with pytest.raises(StaleRound):
        await store.rounds.next_attempt(n, 0)
    with pytest.raises(AssertionError):
        await store.rounds.move(n, expect=RoundState.PROMOTED, to=RoundState.TRAINING)


async def test_freezing_keeps_the_pairs_with_their_split_and_votes(
    store: Store, start_round: StartRound, database_engine: Engine
) -> None:
    n = (await start_round(RoundState.COLLECTING)).n
    double = PAIRS[0].model_copy(update={"id": "d"})
    frozen = await store.rounds.freeze(n, attempt=0, pairs=PAIRS, settled=[double], held_out={"i"}, **FROZEN)
    assert (frozen.state, frozen.pairs, frozen.pair_digest) == (RoundState.TRAINING, 2, "d" * 64)
    assert (frozen.parent, frozen.funnel) == ("policy-0001-aaaaaaaa", {"votes": 2})
    work = await store.rounds.work(n)
    assert (work.round, work.snapshot, work.adapter_ordinal) == (frozen, "/pairs.parquet", 3)
    with database_engine.connect() as connection:
        kept = {row.pair_id: row for row in connection.execute(round_pairs.select())}
    assert (kept["v"].split, kept["v"].source, kept["v"].votes) == (TRAIN, "siblings", [4, 9])
    assert (kept["v"].charged_to, kept["v"].voted_at) == (["someone"], PAIRS[0].voted_at)
    assert (kept["c"].source, kept["c"].correction, kept["c"].chosen_completion_id) == ("correction", 7, None)
    assert (kept["v"].chosen_completion_id, kept["v"].rejected_choice_index) == ("c1", 1)
    assert (kept["i"].split, kept["i"].source, kept["i"].chosen_completion_id) == (HELD_OUT, "import", None)
    assert (kept["d"].split, kept["d"].source, kept["d"].votes) == (SETTLED, "siblings", [4, 9])


async def test_a_stale_freeze_keeps_no_pairs(store: Store, start_round: StartRound, database_engine: Engine) -> None:
    n = (await start_round(RoundState.COLLECTING)).n
    await store.rounds.move(n, expect=RoundState.COLLECTING, to=RoundState.CANCELLED)
    with pytest.raises(StaleRound):
        await store.rounds.freeze(n, attempt=0, pairs=PAIRS, held_out=set(), **FROZEN)
    with database_engine.connect() as connection:
        assert connection.execute(round_pairs.select()).all() == []
    assert (await store.rounds.get(n)).pairs is None


async def test_events_come_in_order_and_continue_behind_the_last_seen(store: Store, start_round: StartRound) -> None:
    n = (await start_round()).n
    await asyncio.gather(*(store.rounds.add_event(n, "step", {"step": step}) for step in range(8)))
    events = await store.rounds.events(n)
    assert [event.kind for event in events] == ["state"] + ["step"] * 8
    assert sorted(event.data["step"] for event in events[1:]) == list(range(8))
    assert await store.rounds.events(n, after_seq=events[3].seq) == events[4:]
    assert await store.rounds.events(n, after_seq=events[-1].seq) == ()


async def test_an_unknown_round_is_not_found(store: Store) -> None:
    calls = [
        store.rounds.get(7),
        store.rounds.move(7, expect=RoundState.QUEUED, to=RoundState.COLLECTING),
        store.rounds.next_attempt(7, 0),
        store.rounds.add_event(7, "step", {}),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="no round 7"):
            await call
