"""Votes that arrive at the same time, in one process and in several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from service.errors import BadRequest, Conflict, NotFound, Unavailable
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion
from tests.voting import effective_in, votes_in

ONE, OTHER, TALK = "chatcmpl-1", "chatcmpl-2", "chatcmpl-3"  # the first two answer one prompt


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    """Two answers of the app `shop` to one prompt, and one to another."""
    await store.completions.record(make_completion(ONE, "one", "two"))
    await store.completions.record(make_completion(TALK, "hello", prompt_token_ids=(7, 8)))


def _vote(rating: Rating | None = Rating.UP, **fields: Any) -> FeedbackBody:
    return FeedbackBody(**({"completion_id": ONE, "user": "ada", "rating": rating} | fields))


async def test_votes_that_arrive_together_get_each_its_own_answer(store: Store, database_engine: Engine) -> None:
    users = [f"user-{n}" for n in range(300)]  # more than go in one transaction
    good = [store.feedback.put("shop", _vote(user=user, feedback_id=f"f-{user}")) for user in users]
    bad = [
        store.feedback.put("shop", _vote(choice_index=7)),
        store.feedback.put("shop", _vote(rating=None, preferred_over={"completion_id": TALK})),
        store.feedback.put("shop", _vote(Rating.DOWN, user="user-0", feedback_id="f-user-0")),
    ]
    answers = await asyncio.gather(*good[:150], *bad, *good[150:], return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(refusal) for refusal in refusals] == [NotFound, BadRequest, Conflict]
    receipts = [answer[0] for answer in answers if not isinstance(answer, BaseException)]
    assert [receipt.feedback_id for receipt in receipts] == [f"f-{user}" for user in users]
    assert [row.user for row in votes_in(database_engine)] == users


async def test_of_votes_that_arrive_together_the_last_is_effective_and_its_receipt_alone_says_so(
    store: Store, database_engine: Engine
) -> None:
    ratings = [Rating.UP, Rating.DOWN] * 4
    answers = await asyncio.gather(*(store.feedback.put("shop", _vote(rating)) for rating in ratings))
    assert [receipt.effective for receipt, _ in answers] == [False] * 7 + [True]
    assert effective_in(database_engine) == [(0, "ada", Rating.DOWN)]


async def test_a_repeated_vote_that_arrives_with_a_later_one_is_no_longer_effective(store: Store) -> None:
    first = _vote(Rating.UP, feedback_id="first")
    await store.feedback.put("shop", first)
    (repeated, created), (later, _) = await asyncio.gather(
        store.feedback.put("shop", first), store.feedback.put("shop", _vote(Rating.DOWN))
    )
    assert (repeated.effective, created, later.effective) == (False, False, True)


async def test_two_processes_that_write_the_same_votes_agree_on_the_last(
    store: Store, database_url: str, database_engine: Engine
) -> None:
    """In opposite order, which would be a deadlock if each waited for the other's rows."""
    second = Store(database_url)
    bodies = [_vote(user=f"user-{n % 7}", choice_index=n % 2, feedback_id=f"f-{n}") for n in range(40)]
    ours = asyncio.gather(*(store.feedback.put("shop", body) for body in bodies))
    theirs = asyncio.gather(*(second.feedback.put("shop", body) for body in reversed(bodies)))
    answers = [*await ours, *await theirs]
    await second.close()
    assert sum(created for _, created in answers) == len(bodies)
    assert len(effective_in(database_engine)) == 14


async def test_without_the_database_every_waiting_vote_is_told(store: Store, tmp_path: Any) -> None:
    away = Store(f"postgresql+psycopg://heliotrope@/postgres?host={tmp_path}")
    votes = (away.feedback.put("shop", _vote(user=f"user-{n}")) for n in range(600))
    answers = await asyncio.gather(*votes, return_exceptions=True)
    await away.close()
    assert {type(answer) for answer in answers} == {Unavailable}


async def test_a_store_that_closes_answers_the_votes_that_are_under_way(
    store: Store, database_url: str, database_engine: Engine
) -> None:
    closing = Store(database_url)
    votes = [asyncio.ensure_future(closing.feedback.put("shop", _vote(user=f"user-{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    await closing.close()
    assert all(vote.done() for vote in votes)
    assert len(votes_in(database_engine)) == 5


async def test_votes_in_one_slot_are_written_one_after_the_other(
    store: Store, database_url: str, database_engine: Engine
) -> None:
    """So that of two processes' votes the one with the higher `seq` is also the one that was committed last."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    second = Store(database_url)
    with database_engine.begin() as operator:
        operator.execute(text("LOCK TABLE feedback IN SHARE MODE"))  # nobody can write yet
        votes = [
            asyncio.ensure_future(place.feedback.put("shop", _vote(rating)))
            for place, rating in ((store, Rating.UP), (second, Rating.DOWN))
        ]
        while operator.execute(waiting).scalar_one() == 0:
            done, _ = await asyncio.wait(votes, timeout=0.01)
            assert not done, "both wrote at once"
    assert all(receipt.effective for receipt, _ in await asyncio.gather(*votes))
    await second.close()
    assert len(votes_in(database_engine)) == 2


async def test_a_vote_on_an_answer_that_is_being_erased_is_told_to_wait_and_holds_nobody_up(
    store: Store, database_engine: Engine
) -> None:
    erased = _vote(feedback_id="mine")
    with database_engine.connect() as eraser:
        eraser.execute(
            text("SELECT FROM choices WHERE completion_id = :id AND choice_index = 0 FOR UPDATE"), {"id": ONE}
        )
        answers = await asyncio.gather(
            store.feedback.put("shop", erased),
            store.feedback.put("shop", _vote(choice_index=1)),
            return_exceptions=True,
        )
    assert isinstance(answers[0], Unavailable)
    assert not isinstance(answers[1], BaseException)
    assert (await store.feedback.put("shop", erased))[1]


async def _waiting_for_a_lock(operator: Connection, vote: asyncio.Future[Any]) -> int:
    """The process id of the backend that would write the vote."""
    waiting = text("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'feedback'::regclass")
    while (pid := operator.execute(waiting).scalar_one_or_none()) is None:
        await asyncio.wait([vote], timeout=0.01)
        assert not vote.done()
    return pid


async def test_a_connection_that_breaks_half_way_leaves_nothing_and_the_next_vote_finds_another(
    store: Store, database_engine: Engine
) -> None:
    with database_engine.begin() as operator:
        operator.execute(text("LOCK TABLE feedback IN SHARE MODE"))
        vote = asyncio.ensure_future(store.feedback.put("shop", _vote(feedback_id="mine")))
        pid = await _waiting_for_a_lock(operator, vote)
        operator.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        with pytest.raises(Unavailable) as refused:
            await vote
    assert refused.value.code == "storage_unavailable"
    assert votes_in(database_engine) == []
    assert (await store.feedback.put("shop", _vote(feedback_id="mine")))[1]


async def test_a_vote_does_not_wait_for_ever_for_a_table_that_somebody_holds(
    database_url: str, database_engine: Engine, store: Store
) -> None:
    hurried = Store(f"{database_url}&options=-c%20lock_timeout%3D50ms")
    with database_engine.begin() as operator:
        operator.execute(text("LOCK TABLE feedback IN SHARE MODE"))
        answers = await asyncio.gather(
            *(hurried.feedback.put("shop", _vote(user=f"user-{n}")) for n in range(3)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert (await hurried.feedback.put("shop", _vote()))[1]
    await hurried.close()
