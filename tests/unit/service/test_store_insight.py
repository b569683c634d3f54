"""Votes counted by the database, each count against votes that were cast one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.contracts import RoundState
from service.pairs import Pair, Source
from service.report.evidence import DayVotes, SliceVotes, VoteFacts
from service.store.completion_rows import prompt_digest
from service.store.store import Store
from service.votes import FeedbackBody, Rival
from serving.contracts import Completion

EVER = datetime(2000, 1, 1, tzinfo=UTC)

# What matching writes: one fate for each effective vote.
FATES = """
    INSERT INTO vote_fates (seq, app, prompt_digest, reason)
    SELECT seq, app, prompt_digest, 'no_partner' FROM (
        SELECT DISTINCT ON (target, "user", kind) * FROM feedback ORDER BY target, "user", kind, seq DESC
    ) AS last WHERE NOT retracted
"""

Vote = Callable[..., Awaitable[str]]


@pytest.fixture
async def vote(store: Store) -> Vote:
    """Casts one vote on `completion/choice`; its id."""

    async def cast(answer: str, user: str | None = None, app: str = "shop", **said: Any) -> str:
        id, _, index = answer.partition("/")
        body = FeedbackBody(completion_id=id, choice_index=int(index or 0), user=user, **said)
        return (await store.feedback.put(app, body))[0].feedback_id

    return cast


@pytest.fixture
async def facts(store: Store, database_engine: Engine) -> Callable[[], Awaitable[VoteFacts]]:
    async def look() -> VoteFacts:
        with database_engine.begin() as connection:
            connection.execute(text(FATES))
        return await store.insight.votes(since=EVER)

    return look


@pytest.fixture
def record(store: Store, make_completion: Callable[..., Completion]) -> Callable[..., Awaitable[None]]:
    async def keep(id: str, *answers: str, **fields: Any) -> None:
        await store.completions.record(make_completion(id, *answers, **fields))

    return keep


async def test_of_an_empty_store_there_is_nothing_to_say(facts: Any) -> None:
    assert await facts() == VoteFacts(days=[], slices=[])


async def test_votes_are_counted_by_day_and_by_what_they_say(
    record: Any, vote: Vote, facts: Any, store: Store, database_engine: Engine
) -> None:
    await record("a", "one", "two")
    first = await vote("a/0", "ann", rating="up")
    await vote("a/1", "ann", rating="down")
    await vote("a/1", "ben", rating="down")
    await vote("a/0", "ben", preferred_over=Rival(choice_index=1))
    await vote("a/0", "ben", correction="three")
    with database_engine.begin() as connection:
        moved = text("UPDATE feedback SET created_at = :at, retracted = false WHERE feedback_id = :id")
        connection.execute(moved, {"at": datetime(2026, 1, 2, 23, 30, tzinfo=UTC), "id": first})
    today = datetime.now(UTC).date()
    days = (await facts()).days
    assert days[0] == DayVotes(date(2026, 1, 2), up=1)
    assert days[1:] == [DayVotes(days[1].day, down=2, comparisons=1, corrections=1)]
    assert abs(days[1].day - today) <= timedelta(days=1)
    assert [day.up for day in (await store.insight.votes(since=datetime(2026, 1, 3, tzinfo=UTC))).days] == [0]


async def test_people_are_counted_by_how_many_votes_they_gave(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", "two", "three")
    await record("b", "one", app="help")
    for choice in range(3):
        await vote(f"a/{choice}", "ann", rating="up")
    await vote("a/0", "ben", rating="up")
    await vote("a/0", rating="down")
    await vote("b/0", "ann", app="help", rating="up")  # another app's ann is somebody else
    found = await facts()
    assert (found.people_of, found.unnamed) == ({3: 1, 1: 2}, 1)


async def test_slices_are_by_app_adapter_and_tag(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", "two")
    await record("b", "one", app="help", adapter="policy-0001-aaaaaaaa")
    await vote("a/0", "ann", rating="up", tags=("sums", "sums"))
    await vote("a/1", "ann", rating="down", tags=("sums", "rude"))
    await vote("a/0", "ben", correction="three")
    await vote("b/0", "ann", app="help", rating="up")
    assert set((await facts()).slices) == {
        SliceVotes("app", "shop", 3, 1, 1),
        SliceVotes("app", "help", 1, 1, 0),
        SliceVotes("adapter", "base", 3, 1, 1),
        SliceVotes("adapter", "policy-0001-aaaaaaaa", 1, 1, 0),
        SliceVotes("tag", "sums", 2, 1, 1),
        SliceVotes("tag", "rude", 1, 0, 1),
    }


async def test_thumbs_of_several_people_meet_on_the_same_answer(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", "two")
    await record("b", "one")  # the same answer to the same prompt, sampled anew
    await record("c", "one", prompt_token_ids=(9, 9))  # the same answer to another prompt
    await vote("a/0", "ann", rating="up")
    await vote("b/0", "ben", rating="up")
    await vote("b/0", "cem", rating="down")
    await vote("a/1", "ann", rating="down")
    await vote("c/0", "ben", rating="up")
    assert (await facts()).rated == {(2, 1): 1}


async def test_one_person_has_one_word_on_an_answer_and_the_unnamed_have_one_each(
    record: Any, vote: Vote, facts: Any
) -> None:
    await record("a", "one")
    await record("b", "one")
    await vote("a/0", "ann", rating="up")
    await vote("b/0", "ann", rating="down")  # the last word counts
    await vote("a/0", rating="up")
    await vote("b/0", rating="up")
    assert (await facts()).rated == {(2, 1): 1}


async def test_what_is_not_stored_is_the_same_only_as_itself(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", store=False)
    await record("b", "one", store=False)
    await vote("a/0", "ann", rating="up")
    await vote("b/0", "ben", rating="up")
    await vote("b/0", "cem", rating="up")
    assert (await facts()).rated == {(2, 0): 1}


async def test_comparisons_meet_whichever_way_round_they_were_sent(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", "two")
    await vote("a/0", "ann", preferred_over=Rival(choice_index=1))
    await vote("a/1", "ben", preferred_over=Rival(choice_index=0))
    await vote("a/1", "cem", preferred_over=Rival(choice_index=0, tie=True))
    assert (await facts()).compared == {(1, 1, 1): 1}


async def test_minds_that_change_are_seen_in_the_history(record: Any, vote: Vote, facts: Any) -> None:
    await record("a", "one", "two")
    for rating in ("up", "up", "down"):
        await vote("a/0", "ann", rating=rating)
    await vote("a/0", "ann", preferred_over=Rival(choice_index=1))
    await vote("a/1", "ann", preferred_over=Rival(choice_index=0))
    for word in ("once", "again"):
        await vote("a/0", "ann", correction=word)  # no change of mind
    for rating in ("up", "down"):
        await vote("a/0", rating=rating)  # nobody knows whether that was one person
    found = await facts()
    assert (found.repeats, found.changes) == (3, 2)


async def test_what_was_taken_back_or_said_anew_is_history_and_does_not_count(
    record: Any, vote: Vote, facts: Any, store: Store
) -> None:
    await record("a", "one")
    await vote("a/0", "ann", rating="up")
    await vote("a/0", "ann", rating="down")
    await store.feedback.retract("shop", await vote("a/0", "ben", rating="up"))
    found = await facts()
    assert (found.written, found.retracted, found.people_of) == (3, 1, {1: 1})


async def test_a_prompt_is_learned_once_a_promoted_round_has_trained_on_it(
    record: Any, start_round: Any, store: Store
) -> None:
    prompts = {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
    for id, tokens in prompts.items():
        await record(id, "one", "two", prompt_token_ids=tokens)
    digests = {id: prompt_digest(tokens) for id, tokens in prompts.items()}
    wanted = [("shop", digest) for digest in digests.values()]

    def pair(id: str, **fields: Any) -> Pair:
        given: dict[str, Any] = {"source": Source.SIDE_BY_SIDE, "chosen": (id, 0), "rejected": (id, 1)}
        return Pair(id=id * 64, prompt_digest=digests[id], app="shop", **(given | fields))

    await start_round(RoundState.FAILED, [pair("a")])
    assert await store.insight.learned_prompts(wanted) == set()
    await start_round(RoundState.PROMOTED, [pair("a"), pair("b", chosen=None, source=Source.CORRECTION)])
    assert await store.insight.learned_prompts(wanted) == {digests["a"], digests["b"]}
    assert await store.insight.learned_prompts([("help", digests["a"])]) == set(), "no app speaks for another's"
    assert await store.insight.learned_prompts([]) == set()
