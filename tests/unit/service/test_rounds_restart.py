"""A Conductor that dies at an awkward moment, and two things that happen at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from service.contracts import RoundState
from service.errors import Conflict, Unavailable
from service.store.store import Store
from serving.contracts import BASE
from tests.fake_trainer import RUNNING, Done, failed
from tests.fakes import Killed
from tests.small_service import SmallService

QUESTIONS = ["first question", "second question"]


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    small = await SmallService.start(store, tmp_path)
    await small.like(*QUESTIONS)
    return small


async def _die() -> None:
    raise Killed


async def test_a_new_conductor_after_every_step_comes_to_the_same_end(small: SmallService) -> None:
    round = await small.ask_for_round()
    states = [RoundState.QUEUED]
    while await small.rounds.step():
        small.restart_conductor()
        states.append((await small.store.rounds.get(round.n)).state)
    assert list(dict.fromkeys(states)) == [
        RoundState.QUEUED,
        RoundState.COLLECTING,
        RoundState.TRAINING,
        RoundState.JUDGING,
        RoundState.PROMOTED,
    ]
    assert len(small.trainer.started) == 1, "the attempt was found, not started again"
    ended = await small.store.rounds.get(round.n)
    assert await small.answers_by() == {ended.adapter}


Arrange = Callable[[SmallService], None]

MOMENTS: dict[str, Arrange] = {
    "before the attempt runs": lambda small: small.trainer.before.update(start=_die),
    "while it looks at the attempt": lambda small: small.trainer.before.update(poll=_die),
    "before the replicas prepare": lambda small: small.host.before.update(prepare=_die),
    "after the replicas prepared": lambda small: small.host.after.update(prepare=_die),
    "after the route changed": lambda small: small.host.before.update(flip=_die),
    "after the replicas flipped": lambda small: small.host.after.update(flip=_die),
}


@pytest.mark.parametrize("arrange", MOMENTS.values(), ids=MOMENTS.keys())
async def test_a_conductor_killed_in_the_middle_is_replaced_by_one_that_finishes(
    small: SmallService, arrange: Arrange
) -> None:
    arrange(small)
    round = await small.ask_for_round()
    with pytest.raises(Killed):
        await small.finish(round)
    small.restart_conductor()
    ended = await small.finish(round)
    assert ended.state is RoundState.PROMOTED
    for replica in small.host.replicas.values():
        await replica.reconcile()
    assert await small.answers_by() == {ended.adapter}
    assert (await small.store.route.read()).generation == 1, "promoted once"
    assert [entry.action for entry in await small.store.audit.list()] == ["promote"]
    assert [adapter.name for adapter in await small.store.adapters.list()] == [ended.adapter]


# The second flip of a round with a canary of one step is its promotion.
OF_CANARY: dict[str, Arrange] = {
    "before the replicas prepare the candidate": lambda small: small.host.before.update(prepare=_die),
    "after the replicas prepared the candidate": lambda small: small.host.after.update(prepare=_die),
    "after the share was written": lambda small: small.host.before.update(flip=_die),
    "after the replicas heard of the share": lambda small: small.host.after.update(flip=_die),
    "after the promotion was written": lambda small: small.host.after.update(flip=_arm(small, small.host.before)),
    "after the replicas heard of the promotion": lambda small: small.host.after.update(
        flip=_arm(small, small.host.after)
    ),
}


def _arm(small: SmallService, events: dict[str, Callable[[], Awaitable[None]]]) -> Callable[[], Awaitable[None]]:
    """Nothing happens now, and the next flip kills."""

    async def arm() -> None:
        asyncio.get_running_loop().call_soon(lambda: events.update(flip=_die))

    return arm


@pytest.fixture
async def careful(store: Store, tmp_path: Path) -> SmallService:
    """Its rounds wait for an operator, then for one request of their canary."""
    sections = {
        "rounds": {"approval": "always"},
        "canary": {"steps": (0.999,), "soak_minutes": 0, "min_requests": 1},
        "watch": {"minutes": 60},
    }
    small = await SmallService.start(store, tmp_path, sections=sections)
    await small.like(*QUESTIONS)
    return small


async def _to_the_end(small: SmallService, n: int) -> None:
    """As operators, replicas and users would: approve what waits for it, read the route, and ask."""
    while not (round := await small.store.rounds.get(n)).state.final:
        if round.state is RoundState.AWAITING_APPROVAL and round.approved_by is None:
            await small.rounds.approve(n, who="tess", reason=None)
        if round.state is RoundState.CANARY:
            for replica in small.host.replicas.values():
                await replica.reconcile()
            await small.answers_by()
        await small.rounds.step()


@pytest.mark.parametrize("arrange", OF_CANARY.values(), ids=OF_CANARY.keys())
async def test_a_conductor_killed_in_a_canary_is_replaced_by_one_that_finishes(
    careful: SmallService, arrange: Arrange
) -> None:
    arrange(careful)
    round = await careful.ask_for_round()
    with pytest.raises(Killed):
        await _to_the_end(careful, round.n)
    careful.restart_conductor()
    await _to_the_end(careful, round.n)
    ended = await careful.store.rounds.get(round.n)
    assert ended.state is RoundState.PROMOTED, ended.reason
    route = await careful.store.route.read()
    assert (route.stable, route.candidate, route.generation) == (ended.adapter, None, 2), "each change once"
    assert [entry.action for entry in await careful.store.audit.list()] == ["promote", "split", "approve"]
    for replica in careful.host.replicas.values():
        await replica.reconcile()
    assert await careful.answers_by() == {ended.adapter}
    assert ended.watch is not None
    assert ended.watch["open"]


async def test_a_new_conductor_after_every_step_comes_through_approval_canary_and_watch(careful: SmallService) -> None:
    round = await careful.ask_for_round()
    states: list[RoundState] = []
    while not round.state.final:
        states.append(round.state)
        if round.state is RoundState.AWAITING_APPROVAL:
            await careful.rounds.approve(round.n, who="tess", reason=None)
        if round.state is RoundState.CANARY:
            await careful.answers_by()
        careful.restart_conductor()
        await careful.rounds.step()
        await careful.rounds.settle()
        round = await careful.store.rounds.get(round.n)
    assert list(dict.fromkeys(states)) == [state for state in RoundState if not state.final]
    assert round.state is RoundState.PROMOTED


@pytest.mark.parametrize("state", [state for state in RoundState if not state.final])
async def test_a_round_can_be_cancelled_in_every_state_by_a_conductor_that_has_just_started(
    careful: SmallService, state: RoundState
) -> None:
    round = await careful.ask_for_round()
    while round.state is not state:
        if round.state is RoundState.AWAITING_APPROVAL:
            await careful.rounds.approve(round.n, who="tess", reason=None)
        await careful.rounds.step()
        round = await careful.store.rounds.get(round.n)
    careful.restart_conductor()
    assert (await careful.rounds.cancel(round.n, who="tess")).state is RoundState.CANCELLED
    assert await careful.rounds.step() is None
    assert careful.trainer.running == set()
    assert await careful.answers_by() == {BASE}
    assert (await careful.rounds.preview()).pairs == 2
    started = await careful.ask_for_round()
    await _to_the_end(careful, started.n)
    assert (await careful.store.rounds.get(started.n)).state is RoundState.PROMOTED, "the next one has the way free"


async def test_a_killed_attempt_and_a_killed_conductor_together_cost_one_attempt(small: SmallService) -> None:
    small.trainer.before["start"] = _die
    round = await small.ask_for_round()
    with pytest.raises(Killed):
        await small.finish(round)
    small.restart_conductor()
    assert (await small.finish(round)).attempt == 2


async def test_after_a_restart_a_rejection_stays_a_rejection(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, [Done({"weights_changed": False})])
    await small.like(*QUESTIONS)
    round = await small.ask_for_round()
    while await small.rounds.step():
        small.restart_conductor()
    assert (await store.rounds.get(round.n)).state is RoundState.REJECTED
    assert await small.answers_by() == {BASE}


# --- at the same time ---------------------------------------------------------------------------------


class Rival:
    """Another process that holds the running round's row, and moves it the moment somebody else waits for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def moves_first(
        self, call: Awaitable[object], state: RoundState | None = None, attempt: int | None = None
    ) -> object:
        """Runs the call up to its own change of the row, changes it first, and gives the call's end."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT n FROM rounds FOR UPDATE"))
            task = asyncio.ensure_future(call)
            with self._engine.connect() as observer:
                while not observer.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
                    observer.rollback()
                    await asyncio.sleep(0)
                    if task.done():
                        break
            change = text("UPDATE rounds SET state = COALESCE(:state, state), attempt = COALESCE(:attempt, attempt)")
            connection.execute(change, {"state": state, "attempt": attempt})
            connection.commit()
        return await task


@pytest.fixture
def rival(database_url: str) -> Iterator[Rival]:
    engine = create_engine(database_url)
    yield Rival(engine)
    engine.dispose()


async def test_cancelling_a_round_that_moves_on_meanwhile_cancels_it_where_it_is(
    small: SmallService, rival: Rival
) -> None:
    round = await small.ask_for_round()
    await rival.moves_first(small.rounds.cancel(round.n, who="tess"), RoundState.COLLECTING)
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANCELLED


async def test_cancelling_a_round_whose_next_attempt_begins_meanwhile_stops_that_one(
    store: Store, tmp_path: Path, rival: Rival
) -> None:
    small = await SmallService.start(store, tmp_path, [RUNNING], [RUNNING])
    await small.like(*QUESTIONS)
    round = await small.ask_for_round()
    while small.trainer.started == []:
        await small.rounds.step()
    [first] = small.trainer.started
    await small.trainer.start(first.model_copy(update={"attempt": 2, "out": f"{first.out[:-1]}2"}))
    await small.trainer.stop(first)
    await rival.moves_first(small.rounds.cancel(round.n, who="tess"), attempt=2)
    assert (await store.rounds.get(round.n)).state is RoundState.CANCELLED
    assert small.trainer.running == set()


async def test_cancelling_a_round_that_ends_meanwhile_is_a_conflict(small: SmallService, rival: Rival) -> None:
    round = await small.ask_for_round()
    with pytest.raises(Conflict) as refused:
        await rival.moves_first(small.rounds.cancel(round.n, who="tess"), RoundState.FAILED)
    assert refused.value.code == "round_over"


async def test_a_step_lets_go_of_a_round_that_was_moved_meanwhile(small: SmallService, rival: Rival) -> None:
    round = await small.ask_for_round()
    assert await rival.moves_first(small.rounds.step(), RoundState.CANCELLED) is RoundState.QUEUED
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANCELLED


async def test_a_failure_of_a_round_that_was_cancelled_meanwhile_does_not_end_the_loop(
    store: Store, tmp_path: Path, rival: Rival
) -> None:
    small = await SmallService.start(store, tmp_path, [RUNNING, failed("the loss is NaN", retryable=False)])
    await small.like(*QUESTIONS)
    round = await small.ask_for_round()
    while small.trainer.started == []:
        await small.rounds.step()
    await small.rounds.step()
    assert await rival.moves_first(small.rounds.step(), RoundState.CANCELLED) is RoundState.TRAINING
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANCELLED


async def test_a_break_of_a_round_that_was_cancelled_meanwhile_does_not_end_the_loop(
    small: SmallService, rival: Rival
) -> None:
    async def break_down() -> None:
        raise RuntimeError("the cluster is away")

    round = await small.ask_for_round()
    while (await small.store.rounds.get(round.n)).state is not RoundState.TRAINING:
        await small.rounds.step()
    small.trainer.before["poll"] = break_down
    assert await rival.moves_first(small.rounds.step(), RoundState.CANCELLED) is RoundState.TRAINING
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANCELLED


async def test_a_step_that_breaks_fails_the_round_with_the_reason(small: SmallService) -> None:
    async def break_down() -> None:
        raise RuntimeError("the cluster is away")

    small.trainer.before["start"] = break_down
    ended = await small.round()
    assert (ended.state, ended.reason) == (RoundState.FAILED, "RuntimeError: the cluster is away")


async def test_a_candidate_waits_for_replicas_that_are_not_there_yet(small: SmallService) -> None:
    """After a restart of everything, training can be done before the engines have loaded."""
    round = await small.ask_for_round()
    small.host.gone = True
    while (await small.store.rounds.get(round.n)).state is not RoundState.JUDGING:
        await small.rounds.step()
    with pytest.raises(Unavailable):
        await small.rounds.step()
    assert (await small.store.rounds.get(round.n)).state is RoundState.JUDGING
    small.host.gone = False
    while await small.rounds.step():
        pass
    assert (await small.store.rounds.get(round.n)).state is RoundState.PROMOTED
