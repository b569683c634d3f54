"""What the store knows of a canary: who came to harm, by whom, and who was drawn with which chance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.canary.harm import Harm, Usual
from service.canary.sequential import Stratum
from service.canary.state import CanaryState
from service.gate.refusals import is_refusal
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving import routing
from serving.contracts import Choice, Completion

BEGAN = datetime(2026, 1, 2, 3, tzinfo=UTC)
STATE = CanaryState(candidate="new", stable="old", usual=Usual(first_token_seconds=1.0, tokens=10)).begin(
    0.1, 0.1, BEGAN
)

Answer = Callable[..., Awaitable[str]]


@pytest.fixture
def answer(store: Store, make_completion: Callable[..., Completion]) -> Answer:
    """An answer by an adapter to a user, so many minutes after the canary began, and a vote on it."""
    count = 0

    async def answer(adapter: str, user: str | None, minutes: float = 1, **fields: Any) -> str:
        nonlocal count
        count += 1
        vote: Rating | None = fields.pop("vote", None)
        text, tokens = fields.pop("text", "an answer"), fields.pop("tokens", 3)
        choice = Choice(index=0, text=text, token_ids=tuple(range(tokens)), finish_reason="stop")
        defaults: dict[str, Any] = {"first_token_seconds": 0.2, "metadata": {}, "choices": (choice,)}
        created_at = BEGAN + timedelta(minutes=minutes)
        made = make_completion(f"c{count}", adapter=adapter, user=user, created_at=created_at, **(defaults | fields))
        await store.completions.record(made)
        if vote is not None:
            await store.feedback.put("shop", FeedbackBody(completion_id=made.id, rating=vote, user=user))
        return made.id

    return answer


async def harmed(store: Store, harm: Harm, state: CanaryState = STATE) -> list[Stratum]:
    return list((await store.canaries.evidence(state)).strata[harm])


async def test_users_are_counted_and_not_their_answers(store: Store, answer: Answer) -> None:
    for _ in range(5):
        await answer("new", "ada", vote=Rating.DOWN)
    await answer("old", "bob", vote=Rating.DOWN)
    await answer("old", "cyd", vote=Rating.UP)
    evidence = await store.canaries.evidence(STATE)
    assert evidence.strata[Harm.DISLIKED] == [Stratum(0.1, 1, 1)]
    assert (evidence.users, evidence.requests) == ({"candidate": 1, "stable": 2}, 5)


async def test_a_user_is_who_the_route_draws(store: Store, answer: Answer) -> None:
    """Users of two apps are two, then conversations count, then each request: as `routing.sticky_key` has it."""
    asked: list[dict[str, Any]] = [
        {"user": "ada"}, {"user": "ada"}, {"user": "ada", "app": "other"},
        {"user": None, "metadata": {"conversation_id": "7"}}, {"user": None, "metadata": {"conversation_id": "7"}},
        {"user": None}, {"user": None},
    ]  # fmt: skip
    keys = set()
    for each in asked:
        id = await answer("new", **each)
        keys.add(routing.sticky_key(each.get("app", "shop"), each["user"], each.get("metadata"), id))
    assert (await store.canaries.evidence(STATE)).users["candidate"] == len(keys) == 5


async def test_only_what_was_left_to_the_route_counts(store: Store, answer: Answer) -> None:
    await answer("new", "ada", vote=Rating.DOWN, model="policy@candidate")
    await answer("new", "bob", vote=Rating.DOWN, model="new")
    await answer("base", "cyd", vote=Rating.DOWN)
    await answer("new", "dan", -5, vote=Rating.DOWN)
    evidence = await store.canaries.evidence(STATE)
    assert (evidence.strata[Harm.DISLIKED], evidence.requests) == ([], 0)


@pytest.mark.parametrize(
    ("harm", "harmful"),
    [
        (Harm.FAILED, {"outcome": "failed", "choices": ()}),
        (Harm.REFUSED, {"text": "I'm sorry, but I can't help with that."}),
        (Harm.SLOW, {"first_token_seconds": 1.5}),
        (Harm.LONG, {"tokens": 11}),
    ],
)
async def test_each_kind_of_harm_is_found(store: Store, answer: Answer, harm: Harm, harmful: dict[str, Any]) -> None:
    await answer("new", "ada", **harmful)
    await answer("old", "bob", first_token_seconds=1.0, tokens=10)
    found = (await store.canaries.evidence(STATE)).strata
    assert {kind: sum(s.candidate + s.stable for s in strata) for kind, strata in found.items()} == {
        kind: int(kind is harm) for kind in Harm
    }
    assert found[harm] == [Stratum(0.1, 1, 0)]


async def test_a_cancelled_answer_is_no_failure(store: Store, answer: Answer) -> None:
    await answer("new", "ada", outcome="cancelled")
    assert await harmed(store, Harm.FAILED) == [Stratum(0.1, 0, 0)]


async def test_without_anything_usual_nothing_is_slow_or_long(store: Store, answer: Answer) -> None:
    await answer("new", "ada", first_token_seconds=99, tokens=99)
    state = STATE.model_copy(update={"usual": Usual()})
    assert await harmed(store, Harm.SLOW, state) == await harmed(store, Harm.LONG, state) == [Stratum(0.1, 0, 0)]


async def test_frequent_harm_is_asked_of_the_first_answer_and_seldom_harm_of_any(store: Store, answer: Answer) -> None:
    """Whoever asks a hundred times meets a slow answer by either adapter."""
    await answer("new", "ada", 1)
    await answer("new", "ada", 2, first_token_seconds=9, outcome="failed")
    assert await harmed(store, Harm.SLOW) == [Stratum(0.1, 0, 0)]
    assert await harmed(store, Harm.FAILED) == [Stratum(0.1, 1, 0)]


@pytest.mark.parametrize(
    "text",
    ["I cannot help with that.", "I’m sorry, but I can’t assist", "I would rather not", "Of course I can help.",
     "x" * 301 + " I cannot help", "The answer: can I help?", "i CANNOT HELP you", ""],
)  # fmt: skip
async def test_the_database_takes_the_same_for_refusals_as_the_gate(store: Store, answer: Answer, text: str) -> None:
    await answer("new", "ada", text=text)
    assert await harmed(store, Harm.REFUSED) == [Stratum(0.1, int(is_refusal(text)), 0)]


async def test_texts_that_are_not_stored_are_no_refusals(store: Store, answer: Answer) -> None:
    await answer("new", "ada", text="I cannot help with that.", store=False)
    assert await harmed(store, Harm.REFUSED) == [Stratum(0.1, 0, 0)]


async def test_only_the_last_thumb_counts_and_none_that_was_taken_back_or_held(store: Store, answer: Answer) -> None:
    changed = await answer("new", "ada", vote=Rating.DOWN)
    await store.feedback.put("shop", FeedbackBody(completion_id=changed, rating=Rating.UP, user="ada"))
    assert await harmed(store, Harm.DISLIKED) == [Stratum(0.1, 0, 0)]
    await store.feedback.put(
        "shop", FeedbackBody(completion_id=changed, rating=Rating.DOWN, user="ada", feedback_id="x")
    )
    assert await harmed(store, Harm.DISLIKED) == [Stratum(0.1, 1, 0)]
    await store.feedback.retract("shop", "x")
    assert await harmed(store, Harm.DISLIKED) == [Stratum(0.1, 0, 0)]


async def test_a_vote_that_comes_late_counts_in_the_step_of_its_answer(store: Store, answer: Answer) -> None:
    id = await answer("old", "ada", 1)
    later = STATE.end(BEGAN + timedelta(hours=1)).begin(0.5, 0.5, BEGAN + timedelta(hours=1))
    await store.feedback.put("shop", FeedbackBody(completion_id=id, rating=Rating.DOWN, user="ada"))
    assert await harmed(store, Harm.DISLIKED, later) == [Stratum(0.1, 0, 1)]


async def test_who_was_not_drawn_before_is_drawn_with_what_is_left_and_who_was_is_not_drawn_again(
    store: Store, answer: Answer
) -> None:
    """Shares grow from 10 to 55 %: of those who were not among the first, half are now."""
    later = STATE.end(BEGAN + timedelta(hours=1)).begin(0.55, 0.55, BEGAN + timedelta(hours=1))
    await answer("new", "stays", 1)
    await answer("new", "stays", 61, vote=Rating.DOWN)
    await answer("old", "moves", 1)
    await answer("new", "moves", 61, vote=Rating.DOWN)
    await answer("new", "comes", 61, vote=Rating.DOWN)
    evidence = await store.canaries.evidence(later)
    harm = [s for s in evidence.strata[Harm.DISLIKED] if s.candidate + s.stable]
    assert [(round(s.share, 9), s.candidate, s.stable) for s in harm] == [(0.55, 1, 0), (0.5, 1, 0)]
    assert evidence.requests == 3, "of the step that goes on"


async def test_who_was_answered_by_both_in_one_step_says_nothing(store: Store, answer: Answer) -> None:
    """A replica that heard of the step a second later than the others."""
    await answer("old", "ada", 1, vote=Rating.DOWN)
    await answer("new", "ada", 2, vote=Rating.DOWN)
    assert await harmed(store, Harm.DISLIKED) == []


# --- what is usual, and after the promotion -----------------------------------------------------------


async def test_usual_is_what_nine_of_ten_answers_were_like(store: Store, answer: Answer) -> None:
    now = await store.canaries.now()
    minutes = (now - BEGAN).total_seconds() / 60 - 5
    for seconds in range(1, 50):
        await answer("old", None, minutes, first_token_seconds=float(seconds), tokens=seconds)
    assert await store.canaries.usual("old", timedelta(hours=1)) == Usual(), "too few to say"
    await answer("old", None, minutes, first_token_seconds=50.0, tokens=50)
    usual = await store.canaries.usual("old", timedelta(hours=1))
    assert (usual.first_token_seconds, usual.tokens) == (pytest.approx(45.1), pytest.approx(45.1))
    assert await store.canaries.usual("old", timedelta(minutes=1)) == Usual()


async def test_after_a_promotion_users_count_once_an_hour(store: Store, answer: Answer) -> None:
    for minutes in (1, 2, 61):
        await answer("new", "ada", minutes, vote=Rating.DOWN)
    await answer("new", "bob", 5)
    counts = await store.canaries.of_hours("new", BEGAN, BEGAN + timedelta(hours=3))
    assert (counts.users, counts.harmed[Harm.DISLIKED]) == (3, 2)
    assert (await store.canaries.of_hours("new", BEGAN, BEGAN + timedelta(minutes=1))).users == 0


async def test_traffic_counts_each_user_once(store: Store, answer: Answer) -> None:
    minutes = ((await store.canaries.now()) - BEGAN).total_seconds() / 60 - 90
    for later in (0, 61):
        await answer("old", "ada", minutes + later, vote=Rating.DOWN)
    await answer("old", "bob", minutes)
    traffic = await store.canaries.traffic("old", 24, Usual())
    assert (traffic.users, traffic.harmed[Harm.DISLIKED], traffic.users_per_hour) == (2, 1, 2 / 24)
