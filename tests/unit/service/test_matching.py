"""From votes in the store to pairs in the store: only what is new, whoever matches, and the same as all at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select

from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.matching import Matcher
from service.pairs import ImportedPair, LeftOut, Pair, Source
from service.store.fates import Wanted
from service.store.store import Store
from service.store.tables import feedback, preference_pairs, stale_prompts, vote_fates
from service.votes import FeedbackBody, Rating, Rival
from serving.contracts import Completion

MakeCompletion = Callable[..., Completion]
Ask = Callable[..., Awaitable[str]]

BURST = QuarantineSettings(burst_votes=3)


@pytest.fixture
def ask(store: Store, make_completion: MakeCompletion) -> Ask:
    """Answers a question; completions of one question have one prompt."""

    async def ask(id: str, *answers: str, question: str = "why?", **fields: Any) -> str:
        given = {"prompt_token_ids": tuple(question.encode()), "messages": [{"role": "user", "content": question}]}
        await store.completions.record(make_completion(id, *answers, **(given | fields)))
        return id

    return ask


@pytest.fixture
def matcher(store: Store) -> Matcher:
    return _matcher(store)


def _matcher(store: Store, quarantine: QuarantineSettings | None = None) -> Matcher:
    return Matcher(store, PreferenceSettings(), quarantine or QuarantineSettings(enabled=False))


async def _vote(store: Store, id: str, choice: int = 0, user: str | None = "ada", **says: Any) -> str:
    body = FeedbackBody(completion_id=id, choice_index=choice, user=user, **(says or {"rating": Rating.UP}))
    return (await store.feedback.put("shop", body))[0].feedback_id


async def _pairs(store: Store) -> list[Pair]:
    return (await store.preferences.open()).pairs


async def _reasons(store: Store) -> list[str | None]:
    """Why each effective vote is in no pair, in their order."""
    page = await store.fates.page(Wanted(), thumbs=True, limit=1000)
    return [vote["reason"] for vote in reversed(page)]


# --- what follows -------------------------------------------------------------------------------------


async def test_votes_become_a_pair_that_knows_all_that_guards_need(store: Store, ask: Ask, matcher: Matcher) -> None:
    await ask("c1", "bad", "good answer", adapter="policy-0001-aaaaaaaa")
    await _vote(store, "c1", 0, rating=Rating.DOWN, tags=["tone"])
    await _vote(store, "c1", 1, rating=Rating.UP)
    assert await matcher.catch_up() == 1
    (pair,) = await _pairs(store)
    assert (pair.source, pair.app, pair.chosen, pair.rejected) == (Source.SIBLINGS, "shop", ("c1", 1), ("c1", 0))
    assert (pair.adapters, pair.tags, pair.chosen_length) == (("policy-0001-aaaaaaaa",), ("tone",), 11)
    assert len(pair.votes) == 2
    assert pair.signature
    assert await _reasons(store) == [None, None]


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
async def test_an_answer_that_its_client_did_not_wait_for_is_never_paired(
    store: Store, ask: Ask, matcher: Matcher, outcome: str
) -> None:
    """Its votes are taken, its choices may look whole: that it was cut off is what counts."""
    await ask("c1", "good", "bad", outcome=outcome)
    await _vote(store, "c1", 0, rating=Rating.UP)
    await _vote(store, "c1", 1, rating=Rating.DOWN)
    await matcher.catch_up()
    assert await _pairs(store) == []
    assert await _reasons(store) == [LeftOut.UNFINISHED, LeftOut.UNFINISHED]


async def test_a_comparison_and_a_correction_become_pairs(store: Store, ask: Ask, matcher: Matcher) -> None:
    await ask("c1", "one", "two")
    await ask("c2", "three", question="how?")
    await _vote(store, "c1", 1, preferred_over=Rival(choice_index=0))
    await _vote(store, "c2", correction="the user's own words")
    await matcher.catch_up()
    assert {(pair.source, pair.chosen, pair.rejected) for pair in await _pairs(store)} == {
        (Source.SIDE_BY_SIDE, ("c1", 1), ("c1", 0)),
        (Source.CORRECTION, None, ("c2", 0)),
    }


async def test_only_prompts_with_something_new_are_matched(store: Store, ask: Ask, matcher: Matcher) -> None:
    for n in range(5):
        await ask(f"c{n}", "bad", "good", question=f"question {n}")
        await _vote(store, f"c{n}", 1)
    assert await matcher.catch_up() == 5
    assert await matcher.catch_up() == 0
    await _vote(store, "c3", 0, rating=Rating.DOWN)
    assert await store.prompts.waiting(10) == 2, "both votes on that prompt are looked at"
    assert await matcher.catch_up() == 1
    assert [pair.chosen for pair in await _pairs(store) if not pair.is_thumb] == [("c3", 1)]


async def test_a_change_of_mind_and_a_retraction_undo_what_followed(store: Store, ask: Ask, matcher: Matcher) -> None:
    await ask("c1", "one", "two")
    await _vote(store, "c1", 0, preferred_over=Rival(choice_index=1))
    await matcher.catch_up()
    last = await _vote(store, "c1", 1, preferred_over=Rival(choice_index=0))
    await matcher.catch_up()
    assert [pair.chosen for pair in await _pairs(store)] == [("c1", 1)]
    assert await _reasons(store) == [None], "the earlier vote is not effective any more"
    await store.feedback.retract("shop", last)
    await matcher.catch_up()
    assert await _pairs(store) == []
    assert await _reasons(store) == []


async def test_two_users_of_a_conversation_are_not_compared(store: Store, ask: Ask, matcher: Matcher) -> None:
    said = [{"role": role, "content": "so?"} for role in ("user", "assistant", "user")]
    await ask("c1", "bad", messages=said)
    await ask("c2", "good", messages=said)
    await _vote(store, "c1", rating=Rating.DOWN, user="ada")
    await _vote(store, "c2", user="bob")
    await matcher.catch_up()
    assert {pair.source for pair in await _pairs(store)} == {Source.THUMB}
    page = await store.fates.page(Wanted(), thumbs=False, limit=10)
    assert {vote["reason"] for vote in page} == {"personal"}


async def test_imported_pairs_and_thumbs_are_among_the_open_ones(store: Store, matcher: Matcher) -> None:
    messages = ({"role": "user", "content": "why?"},)
    pairs = [
        ImportedPair(id="a", messages=messages, chosen="yes", rejected="no"),
        ImportedPair(id="b", messages=messages, chosen="yes", rejected=None, format="kto"),
    ]
    async with store.imports.begin() as incoming:
        await incoming.add(pairs)
    assert await store.prompts.waiting(10) == 2
    assert await matcher.catch_up() == 2
    assert [(pair.id, pair.source, pair.app) for pair in await _pairs(store)] == [
        ("a", Source.IMPORT, None),
        ("b", Source.THUMB, None),
    ]
    assert await store.prompts.waiting(10) == 0


# --- in batches, by several, again --------------------------------------------------------------------


async def test_a_batch_is_small_in_votes_too_and_never_empty_while_there_is_work(store: Store, ask: Ask) -> None:
    for n, votes in enumerate((7, 2, 2, 2)):
        await ask(f"c{n}", *"abcdefg", question=f"question {n}")
        for choice in range(votes):
            await _vote(store, f"c{n}", choice)
    sizes = []
    while True:
        async with store.prompts.batch(prompts=10, votes=4) as batch:
            if batch.empty:
                break
            sizes.append((len(batch.keys), len(batch.said)))
    assert sizes == [(1, 7), (2, 4), (1, 2)]


async def test_a_batch_that_breaks_off_is_on_the_queue_again(store: Store, ask: Ask, matcher: Matcher) -> None:
    await ask("c1", "one")
    await _vote(store, "c1")
    with pytest.raises(RuntimeError):
        async with store.prompts.batch(prompts=1, votes=1):
            raise RuntimeError("the process ends here")
    assert await matcher.catch_up() == 1
    assert len(await _pairs(store)) == 1


async def test_several_who_match_at_once_do_it_once(store: Store, database_url: str, ask: Ask) -> None:
    for n in range(12):
        await ask(f"c{n}", "bad", "good", question=f"question {n}")
    stores = [Store(database_url) for _ in range(3)]

    async def vote_and_match(n: int) -> None:
        for choice, rating in ((0, Rating.DOWN), (1, Rating.UP)):
            await _vote(store, f"c{n}", choice, rating=rating)
            await _matcher(stores[n % 3]).catch_up()

    await asyncio.gather(*(vote_and_match(n) for n in range(12)))
    for other in stores:
        await other.close()
    pairs = await _pairs(store)
    assert sorted(pair.chosen or ("", 0) for pair in pairs) == sorted((f"c{n}", 1) for n in range(12))
    assert await _reasons(store) == [None] * 24


@pytest.mark.parametrize("seed", range(4))
async def test_vote_by_vote_comes_to_the_same_as_all_at_once(
    store: Store, database_engine: Engine, ask: Ask, matcher: Matcher, seed: int
) -> None:
    dice = random.Random(seed)
    for n in range(6):
        await ask(f"c{n}", "one", "two", "three", question=f"question {n % 3}")
    kept: list[str] = []
    for _ in range(40):
        if kept and dice.random() < 0.15:
            await store.feedback.retract("shop", kept.pop(dice.randrange(len(kept))))
        kept.append(await _vote(store, f"c{dice.randrange(6)}", **_anything(dice)))
        if dice.random() < 0.5:
            await matcher.catch_up()
    await matcher.catch_up()
    vote_by_vote = _rows(database_engine)
    with database_engine.begin() as connection:
        connection.execute(vote_fates.delete())
        connection.execute(preference_pairs.delete())
        prompts = select(feedback.c.app, feedback.c.prompt_digest).distinct()
        connection.execute(stale_prompts.insert().from_select(["app", "prompt_digest"], prompts))
    await matcher.catch_up()
    assert _rows(database_engine) == vote_by_vote
    assert vote_by_vote[0], "there is something to compare"


def _anything(dice: random.Random) -> dict[str, Any]:
    """What somebody says of one of three choices."""
    choice, rival = dice.sample(range(3), 2)
    says: list[dict[str, Any]] = [
        {"rating": Rating.UP},
        {"rating": Rating.DOWN},
        {"correction": f"words {dice.randrange(3)}"},
        {"preferred_over": Rival(choice_index=rival, tie=dice.random() < 0.2)},
    ]
    return {"choice": choice, "user": dice.choice(["ada", "bob", None]), **dice.choice(says)}


def _rows(engine: Engine) -> list[list[str]]:
    with engine.connect() as connection:
        return [sorted(map(str, connection.execute(select(table)))) for table in (preference_pairs, vote_fates)]


# --- quarantine ---------------------------------------------------------------------------------------


async def _burst(store: Store, ask: Ask, matcher: Matcher, first: int = 0) -> None:
    """Four votes of bob at once, on questions of their own; ada votes once."""
    for n in range(first, first + 4):
        await ask(f"c{n}", "bad", "good", question=f"question {n}")
        await _vote(store, f"c{n}", 1, user="bob")
    await ask(f"a{first}", "fine", question="ada's own")
    await _vote(store, f"a{first}", user="ada")
    await matcher.catch_up()


async def test_a_burst_is_held_and_what_its_user_says_later_joins_it(store: Store, ask: Ask) -> None:
    matcher = _matcher(store, BURST)
    await _burst(store, ask, matcher)
    (item,) = await store.quarantine.list()
    assert (item.kind, item.app, item.user, item.status, item.votes) == ("burst", "shop", "bob", "held", 4)
    assert item.why
    assert await _reasons(store) == ["quarantined"] * 4 + [None]
    await ask("later", "good", question="something else")
    await _vote(store, "later", user="bob")
    await matcher.catch_up()
    assert [item.votes for item in await store.quarantine.list()] == [5]
    assert (await _reasons(store))[-1] == "quarantined"


async def test_votes_that_were_matched_before_the_suspicion_arose_are_taken_out_of_their_pairs(
    store: Store, ask: Ask
) -> None:
    matcher = _matcher(store, BURST)
    for n in range(3):
        await ask(f"c{n}", "bad", "good", question=f"question {n}")
        await _vote(store, f"c{n}", 1, user="bob")
        await matcher.catch_up()
        assert len(await _pairs(store)) == (n + 1 if n < 2 else 0)
    assert await _reasons(store) == ["quarantined"] * 3


async def test_released_votes_count_and_are_no_reason_for_a_new_suspicion(store: Store, ask: Ask) -> None:
    matcher = _matcher(store, BURST)
    await _burst(store, ask, matcher)
    (item,) = await store.quarantine.list("held")
    released = await store.quarantine.decide(item.id, "released", who="tess", reason="a tester")
    assert (released.status, released.decided_by, released.votes) == ("released", "tess", 4)
    await matcher.catch_up()
    assert await _reasons(store) == [None] * 5
    await ask("later", "good", question="something else")
    await _vote(store, "later", user="bob")
    await matcher.catch_up()
    assert await store.quarantine.list("held") == ()
    await _burst(store, ask, matcher, first=10)
    assert [item.votes for item in await store.quarantine.list("held")] == [5], "new votes gave a new reason"


async def test_dropped_votes_never_count_unless_they_are_released_after_all(store: Store, ask: Ask) -> None:
    matcher = _matcher(store, BURST)
    await _burst(store, ask, matcher)
    (item,) = await store.quarantine.list()
    await store.quarantine.decide(item.id, "dropped", who="tess", reason=None)
    await matcher.catch_up()
    assert await _reasons(store) == ["dropped"] * 4 + [None]
    await _vote(store, "c0", 0, rating=Rating.DOWN, user="ada")
    await matcher.catch_up()
    assert [pair for pair in await _pairs(store) if not pair.is_thumb] == []
    await store.quarantine.decide(item.id, "released", who="tess", reason="by mistake")
    await matcher.catch_up()
    assert LeftOut.DROPPED not in await _reasons(store)
    written = [(entry.action, entry.detail["was"]) for entry in await store.audit.list()]
    assert written == [("quarantine_released", "dropped"), ("quarantine_dropped", "held")]


async def test_votes_without_a_user_are_never_held(store: Store, ask: Ask) -> None:
    for n in range(8):
        await ask(f"c{n}", "good", question=f"question {n}")
        await _vote(store, f"c{n}", user=None)
    await _matcher(store, BURST).catch_up()
    assert await store.quarantine.list() == ()
