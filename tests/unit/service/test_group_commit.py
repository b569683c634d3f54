from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import Unavailable
from service.postgres.group_commit import GroupCommit


class Journal:
    """Commits when it is told to, and remembers what came together. A negative number is its caller's mistake."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.began = asyncio.Event()
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.fails_with: list[Exception] = []  # the next commits, one each

    async def commit(self, numbers: Sequence[int]) -> list[str | Exception]:
        self.groups.append([*numbers])
        self.began.set()
        await self.may_commit.wait()
        if self.fails_with:
            raise self.fails_with.pop(0)
        if 13 in numbers:
            raise ZeroDivisionError("13 breaks the statement for all")
        return [ValueError(number) if number < 0 else f"kept {number}" for number in numbers]


async def _gathered(group: GroupCommit[int, str], *numbers: int) -> list[str | BaseException]:
    return await asyncio.gather(*(group.submit(number) for number in numbers), return_exceptions=True)


async def test_a_call_that_comes_alone_goes_alone() -> None:
    journal = Journal()
    group = GroupCommit(journal.commit, most=10)
    assert [await group.submit(1), await group.submit(2)] == ["kept 1", "kept 2"]
    assert journal.groups == [[1], [2]]


async def test_what_arrives_while_one_is_under_way_goes_together_in_order_and_not_more_than_the_most() -> None:
    journal = Journal()
    group = GroupCommit(journal.commit, most=3)
    journal.may_commit.clear()
    first = asyncio.ensure_future(group.submit(0))
    await journal.began.wait()
    rest = asyncio.ensure_future(_gathered(group, 1, 2, 3, 4))
    await asyncio.sleep(0)
    assert journal.groups == [[0]]
    journal.may_commit.set()
    assert [await first, *await rest] == [f"kept {number}" for number in range(5)]
    assert journal.groups == [[0], [1, 2, 3], [4]]


async def test_a_bad_call_fails_alone() -> None:
    answers = await _gathered(GroupCommit(Journal().commit, most=10), 1, -2, 3)
    assert (answers[0], answers[2]) == ("kept 1", "kept 3")
    assert isinstance(answers[1], ValueError)


async def test_when_one_breaks_the_group_each_is_tried_alone() -> None:
    journal = Journal()
    answers = await _gathered(GroupCommit(journal.commit, most=10), 1, 13, 3)
    assert (answers[0], answers[2]) == ("kept 1", "kept 3")
    assert isinstance(answers[1], ZeroDivisionError)
    assert journal.groups == [[1, 13, 3], [1], [13], [3]]


async def test_when_the_store_is_away_all_who_wait_are_told_at_once_and_the_next_tries_again() -> None:
    journal = Journal()
    group = GroupCommit(journal.commit, most=2)
    journal.fails_with = [Unavailable("gone")]
    assert [type(answer) for answer in await _gathered(group, 1, 2, 3, 4)] == [Unavailable] * 4
    assert journal.groups == [[1, 2]]
    assert await group.submit(5) == "kept 5"


async def test_when_the_store_goes_away_while_each_is_tried_alone_the_rest_are_told() -> None:
    journal = Journal()
    journal.fails_with = [ZeroDivisionError(), Unavailable("gone")]
    answers = await _gathered(GroupCommit(journal.commit, most=10), 1, 2, 3)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert journal.groups == [[1, 2, 3], [1]]


async def test_who_is_cancelled_while_waiting_takes_the_call_back_and_later_leaves_the_others_alone() -> None:
    journal = Journal()
    group = GroupCommit(journal.commit, most=10)
    journal.may_commit.clear()
    first, second = asyncio.ensure_future(group.submit(1)), asyncio.ensure_future(group.submit(2))
    await journal.began.wait()
    third, fourth = asyncio.ensure_future(group.submit(3)), asyncio.ensure_future(group.submit(4))
    await asyncio.sleep(0)
    first.cancel()
    third.cancel()
    journal.may_commit.set()
    assert (await second, await fourth) == ("kept 2", "kept 4")
    assert journal.groups == [[1, 2], [4]]


async def test_closing_waits_for_the_answers() -> None:
    journal = Journal()
    group = GroupCommit(journal.commit, most=1)
    calls = [asyncio.ensure_future(group.submit(number)) for number in range(3)]
    await asyncio.sleep(0)
    await group.close()
    assert [call.done() for call in calls] == [True] * 3
    await group.close()


def test_a_loop_that_ends_leaves_nobody_waiting() -> None:
    async def abandoned() -> asyncio.Future[str]:
        journal = Journal()
        journal.may_commit.clear()
        call = asyncio.ensure_future(GroupCommit(journal.commit, most=1).submit(1))
        await journal.began.wait()
        return call

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(abandoned()).result()
