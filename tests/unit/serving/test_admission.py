"""Who goes to the engine, who waits and in which order, and who is turned away."""

from __future__ import annotations

import asyncio

import pytest

from serving.admission import LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS, Admission, Place
from serving.errors import Overloaded
from tests.fakes import until


def admission(places: int = 2, waiting: int = 2, seconds: float = 3600.0) -> Admission:
    return Admission(places, max_waiting=waiting, max_waiting_seconds=seconds)


async def queued(door: Admission, answers: int = 1) -> asyncio.Task[Place]:
    """A request that waits."""
    before = door.waiting
    task = asyncio.create_task(door.enter(answers))
    await until(lambda: door.waiting == before + 1)
    return task


async def test_as_many_as_there_are_places_go_in_at_once_and_a_place_given_back_is_free() -> None:
    door = admission()
    first, _ = await door.enter(1), await door.enter(1)
    waits = await queued(door)
    assert (door.running, door.waiting) == (2, 1)
    first.release()
    await waits
    assert (door.running, door.waiting) == (2, 0)


async def test_a_place_that_is_given_back_twice_is_free_once() -> None:
    door = admission()
    first, _ = await door.enter(1), await door.enter(1)
    first.release()
    first.release()
    assert door.running == 1


async def test_whoever_comes_first_is_served_first() -> None:
    door = admission(places=1, waiting=5)
    place = await door.enter(1)
    waiting = [await queued(door) for _ in range(5)]
    for task in waiting:
        place.release()
        place = await task
        assert [other.done() for other in waiting] == [True] * (waiting.index(task) + 1) + [False] * (
            4 - waiting.index(task)
        )


async def test_beyond_the_queue_a_request_is_turned_away_at_once_and_those_who_wait_stay() -> None:
    door = admission()
    for _ in range(2):
        await door.enter(1)
    waiting = [await queued(door) for _ in range(2)]
    with pytest.raises(Overloaded) as refused:
        await door.enter(1)
    assert LEAST_RETRY_SECONDS <= refused.value.retry_after_seconds <= MOST_RETRY_SECONDS
    assert str(refused.value.retry_after_seconds) in str(refused.value)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_n_answers_count_n_times_running_and_waiting() -> None:
    door = admission(places=4, waiting=4)
    three = await door.enter(3)
    waits = await queued(door, 2)
    with pytest.raises(Overloaded):
        await door.enter(3)
    last = await queued(door, 2)
    assert door.running == 3
    three.release()
    await waits
    await last
    assert door.running == 4


async def test_nobody_overtakes_a_request_for_many_answers() -> None:
    door = admission(places=4, waiting=8)
    running = [await door.enter(1) for _ in range(4)]
    many, one = await queued(door, 4), await queued(door)
    for place in running[:3]:
        place.release()
    assert not many.done() and not one.done()
    running[3].release()
    await many
    assert not one.done()
    one.cancel()


async def test_more_answers_than_there_are_places_go_alone() -> None:
    door = admission(places=2, waiting=8)
    small = await door.enter(1)
    large = await queued(door, 5)
    small.release()
    place = await large
    after = await queued(door)
    place.release()
    await after
    assert door.running == 1


async def test_who_waits_too_long_is_turned_away_and_gives_way() -> None:
    door = admission(places=1, waiting=5, seconds=0.0)
    place = await door.enter(1)
    with pytest.raises(Overloaded, match="0 seconds"):
        await door.enter(1)
    assert door.waiting == 0
    place.release()
    assert (await door.enter(1)) and door.running == 1


async def test_who_goes_away_while_waiting_lets_the_next_in() -> None:
    door = admission(places=2, waiting=8)
    place = await door.enter(1)
    many, one = await queued(door, 2), await queued(door)
    many.cancel()
    with pytest.raises(asyncio.CancelledError):
        await many
    await one
    assert door.running == 2
    place.release()


async def test_who_goes_away_in_the_moment_of_being_called_leaves_no_place_taken() -> None:
    door = admission(places=1)
    place = await door.enter(1)
    waits = await queued(door)
    place.release()  # it is called now, and runs on only later
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert door.running == 0


async def test_when_to_come_back_follows_the_rate_at_which_places_came_free() -> None:
    now = 100.0
    door = Admission(1, max_waiting=100, max_waiting_seconds=10, clock=lambda: now)
    assert door.retry_after_seconds() == 10, "nothing is known yet"
    for _ in range(20):  # two a second
        (await door.enter(1)).release()
        now += 0.5
    place = await door.enter(1)
    waiting = [await queued(door) for _ in range(9)]
    assert door.retry_after_seconds() == 5
    assert door.retry_after_seconds(16) == 13
    assert door.retry_after_seconds(1000) == MOST_RETRY_SECONDS
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert door.retry_after_seconds() == LEAST_RETRY_SECONDS
    now += 3600
    assert door.retry_after_seconds() == 10, "what was an hour ago says nothing"
    place.release()
