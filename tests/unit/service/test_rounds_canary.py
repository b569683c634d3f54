"""From a candidate that passed to one that answers everybody: approval, canary, watch. Real store, fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.alarms import AlarmKind
from service.contracts import Round, RoundState
from service.errors import Conflict
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import BASE, Caller
from tests.fakes import Killed
from tests.small_service import SmallService

QUESTIONS = ["first question", "second question"]
AT_ONCE = 4  # users
STEPS = {"steps": (0.25, 0.5, 1.0), "soak_minutes": 0, "min_requests": 3}

Start = Callable[..., Awaitable[SmallService]]


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Start:
    """A service with enough votes for a round; the arguments are sections of its settings."""

    async def start(**sections: dict[str, Any]) -> SmallService:
        small = await SmallService.start(store, tmp_path, sections=sections)
        await small.like(*QUESTIONS)
        return small

    return start


async def until(small: SmallService, state: RoundState) -> Round:
    """A new round, as far as that state."""
    round = await small.ask_for_round()
    while round.state is not state:
        assert not round.state.final, round.reason
        await small.rounds.step()
        round = await small.store.rounds.get(round.n)
    return round


async def until_step(small: SmallService, step: int) -> Round:
    """In the canary, as far as its step of that number; users who ask are none the worse for it."""
    round = await until(small, RoundState.CANARY)
    while (await small.store.rounds.get(round.n)).canary["step"] < step:  # type: ignore[index]
        await small.rounds.step()
        await ask(small, 40)
    return await small.store.rounds.get(round.n)


async def ask(small: SmallService, users: int, dislike: Callable[[str], bool] = lambda adapter: False) -> list[str]:
    """Everybody asks once; who answered. Whoever is answered by an adapter that `dislike` names says so."""

    async def one(user: str) -> str:
        body = {"model": "policy", "user": user, "messages": [{"role": "user", "content": "hello"}]}
        answer = await small.replica.chat(body, Caller(app="shop"))
        if dislike(answer.adapter):
            vote = FeedbackBody(completion_id=answer.completion_id, rating=Rating.DOWN, user=user)
            await small.store.feedback.put("shop", vote)
        return answer.adapter

    adapters: list[str] = []
    for first in range(0, users, AT_ONCE):
        adapters += await asyncio.gather(*(one(f"user {user}") for user in range(first, min(first + AT_ONCE, users))))
    return adapters


async def alarms(small: SmallService) -> list[str]:
    return [alarm.kind for alarm in await small.store.alarms.list()]


async def audited(small: SmallService) -> list[tuple[str, str]]:
    return [(entry.who, entry.action) for entry in reversed(await small.store.audit.list())]


# --- the canary ---------------------------------------------------------------------------------------


async def test_a_candidate_answers_more_users_step_by_step_and_at_last_all(start: Start) -> None:
    small = await start(canary=STEPS)
    round = await until_step(small, 1)
    first = await ask(small, 200)
    assert 20 < first.count(str(round.adapter)) < 80
    await small.rounds.step()
    await small.rounds.step()
    route = await small.store.route.read()
    assert (route.stable, route.candidate, route.candidate_share) == (BASE, round.adapter, 0.5)
    second = await ask(small, 200)
    assert {user for user, adapter in enumerate(first) if adapter == round.adapter} < {
        user for user, adapter in enumerate(second) if adapter == round.adapter
    }, "who was answered by the candidate stays with it"
    ended = await small.finish(round)
    assert (ended.state, ended.reason) == (RoundState.PROMOTED, round.reason)
    route = await small.store.route.read()
    assert (route.stable, route.previous, route.candidate) == (round.adapter, BASE, None)
    assert await small.answers_by() == {round.adapter}
    assert ended.canary is not None
    assert (ended.canary["open"], [step["share"] for step in ended.canary["steps"]]) == (False, [0.25, 0.5])
    events = [e.data for e in await small.store.rounds.events(round.n) if e.kind == "canary"]
    assert [(e["step"], e["steps"], e["share"]) for e in events] == [(1, 2, 0.25), (2, 2, 0.5)]
    who = f"round {round.n}"
    assert await audited(small) == [(who, "split"), (who, "split"), (who, "promote")]


async def test_a_candidate_that_people_dislike_is_stopped_and_nobody_meets_it_again(start: Start) -> None:
    small = await start(canary=STEPS | {"min_requests": 10_000})
    round = await until_step(small, 1)
    await ask(small, 150, dislike=lambda adapter: adapter != BASE)
    ended = await small.finish(round)
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("stopped in its canary: disliked: ")
    route = await small.store.route.read()
    assert (route.stable, route.candidate, route.candidate_share) == (BASE, None, 0)
    assert set(await ask(small, 50)) == {BASE}
    assert await alarms(small) == [AlarmKind.CANARY_STOPPED]
    assert ended.canary is not None
    assert ended.canary["open"] is False
    [disliked] = [one for one in ended.canary["seen"] if one["harm"] == "disliked"]
    assert disliked["stable"] == 0 < disliked["candidate"]
    assert disliked["e_value"] >= disliked["bound"]


async def test_what_people_dislike_of_both_alike_stops_nobody(start: Start) -> None:
    small = await start(canary=STEPS | {"min_requests": 10_000})
    round = await until_step(small, 1)
    await ask(small, 150, dislike=lambda adapter: True)
    await small.rounds.step()
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANARY


async def test_the_baseline_keeps_its_users_and_is_no_part_of_the_test(start: Start) -> None:
    small = await start(canary=STEPS)
    baseline = await small.publish(7)
    await small.registry.split(baseline=baseline.name, baseline_share=0.2, who="tess")
    round = await until_step(small, 1)
    assert round.canary is not None
    assert round.canary["steps"][0] | {"began": None} == {
        "share": 0.25, "drawn": 0.25 / 0.8, "began": None, "ended": None, "approved_by": None,
    }  # fmt: skip
    await ask(small, 100, dislike=lambda adapter: adapter == baseline.name)
    await small.rounds.step()
    ended = await small.store.rounds.get(round.n)
    assert ended.canary is not None
    assert {one["stable"] + one["candidate"] for one in ended.canary["seen"]} == {0}


async def test_each_step_can_wait_for_an_operator(start: Start) -> None:
    small = await start(canary=STEPS | {"advance": "approved"})
    round = await until_step(small, 1)
    await ask(small, 40)
    for _ in range(3):
        await small.rounds.step()
    waiting = await small.store.rounds.get(round.n)
    assert waiting.canary is not None
    assert (waiting.canary["step"], waiting.canary["waits_for"]) == (1, "an operator must approve the next step")
    await small.rounds.approve(round.n, who="tess", reason="looks well")
    await small.rounds.step()
    await small.rounds.step()
    assert (await small.store.route.read()).candidate_share == 0.5
    assert ("tess", "approve") in await audited(small)


async def test_steps_that_go_on_by_themselves_need_no_approval(start: Start) -> None:
    small = await start(canary=STEPS)
    round = await until_step(small, 1)
    with pytest.raises(Conflict) as refused:
        await small.rounds.approve(round.n, who="tess", reason=None)
    assert refused.value.code == "nothing_to_approve"


async def test_a_canary_can_be_turned_down_or_cancelled_and_then_nobody_is_drawn_for_it(start: Start) -> None:
    small = await start(canary=STEPS)
    for end, state in (("reject", RoundState.REJECTED), ("cancel", RoundState.CANCELLED)):
        round = await until_step(small, 1)
        call = small.rounds.reject(round.n, who="tess", reason="typos") if end == "reject" else small.rounds.cancel(
            round.n, who="tess"
        )  # fmt: skip
        ended = await call
        assert (ended.state, (await small.store.route.read()).candidate) == (state, None)
        assert set(await ask(small, 40)) == {BASE}
        assert await small.rounds.step() is None
        assert await small.rounds.settle() is None, "nothing is left to do"
        await small.like(f"{end} one", f"{end} two")
    assert await alarms(small) == [], "who asked for it need not be told"


async def test_a_candidate_that_could_not_be_taken_off_at_once_is_taken_off_later(start: Start) -> None:
    """The Conductor died after it had said that the round is over."""
    small = await start(canary=STEPS)
    round = await until_step(small, 1)
    await small.store.rounds.stop(
        round.n, expect=RoundState.CANARY, to=RoundState.CANCELLED, who="tess", reason="no more"
    )
    assert (await small.store.route.read()).candidate == round.adapter
    small.restart_conductor()
    await small.rounds.settle()
    assert (await small.store.route.read()).candidate is None
    assert await small.rounds.settle() is None


# --- operators in between -----------------------------------------------------------------------------


async def test_an_operator_who_promotes_another_adapter_ends_the_canary(start: Start) -> None:
    small = await start(canary=STEPS)
    theirs = await small.publish(50)
    round = await until_step(small, 1)
    await small.registry.promote(theirs.name, who="tess")
    ended = await small.finish(round)
    assert (ended.state, ended.reason) == (
        RoundState.REJECTED, f"stopped in its canary: the route was changed meanwhile: {theirs.name} answers",
    )  # fmt: skip
    assert await small.answers_by() == {theirs.name}


async def test_an_operator_who_promotes_the_candidate_ends_the_canary_well(start: Start) -> None:
    small = await start(canary=STEPS)
    round = await until_step(small, 1)
    await small.registry.promote(str(round.adapter), who="tess")
    with pytest.raises(Conflict) as refused:
        await small.rounds.cancel(round.n, who="tess")
    assert refused.value.code == "round_promoted"
    assert (await small.finish(round)).state is RoundState.PROMOTED


async def test_an_operator_who_takes_the_candidate_off_ends_the_canary(start: Start) -> None:
    small = await start(canary=STEPS)
    round = await until_step(small, 1)
    await small.registry.split(candidate=None, who="tess")
    assert (await small.finish(round)).state is RoundState.REJECTED


async def test_an_operator_may_change_the_share_and_a_new_step_is_counted_from_then_on(start: Start) -> None:
    small = await start(canary=STEPS | {"min_requests": 10_000})
    round = await until_step(small, 1)
    await small.registry.split(candidate_share=0.4, who="tess")
    await small.rounds.step()
    state = (await small.store.rounds.get(round.n)).canary
    assert state is not None
    assert [(step["share"], step["ended"] is None) for step in state["steps"]] == [(0.25, False), (0.4, True)]


# --- approval -----------------------------------------------------------------------------------------


async def test_a_candidate_waits_for_an_operator_over_restarts_and_answers_after_the_approval(start: Start) -> None:
    small = await start(rounds={"approval": "always"})
    round = await until(small, RoundState.AWAITING_APPROVAL)
    assert "an operator must approve" in str(round.reason)
    for _ in range(3):
        small.restart_conductor()
        assert await small.rounds.step() is RoundState.AWAITING_APPROVAL
    assert await small.answers_by() == {BASE}
    approved = await small.rounds.approve(round.n, who="tess", reason=None)
    assert approved.approved_by == "tess"
    ended = await small.finish(round)
    assert (ended.state, ended.approved_by) == (RoundState.PROMOTED, "tess")
    assert str(ended.reason).endswith("; approved by tess")
    assert await audited(small) == [("tess", "approve"), (f"round {round.n}", "promote")]


async def test_an_approved_candidate_begins_its_canary(start: Start) -> None:
    small = await start(rounds={"approval": "always"}, canary=STEPS)
    round = await until(small, RoundState.AWAITING_APPROVAL)
    await small.rounds.approve(round.n, who="tess", reason=None)
    await small.rounds.step()
    assert (await small.store.rounds.get(round.n)).state is RoundState.CANARY


async def test_a_candidate_that_is_turned_down_never_answers(start: Start) -> None:
    small = await start(rounds={"approval": "always"})
    round = await until(small, RoundState.AWAITING_APPROVAL)
    ended = await small.rounds.reject(round.n, who="tess", reason="it flatters")
    assert (ended.state, ended.reason) == (RoundState.REJECTED, "turned down by tess: it flatters")
    assert await small.rounds.step() is None
    assert await small.answers_by() == {BASE}


async def test_only_what_is_flagged_waits_where_only_that_is_asked_for(start: Start) -> None:
    small = await start(rounds={"approval": "when_flagged", "flagged_users": 2})
    assert (await small.round()).state is RoundState.PROMOTED
    small = await start(rounds={"approval": "when_flagged", "flagged_users": 9})
    await small.like("third question", "fourth question")
    round = await until(small, RoundState.AWAITING_APPROVAL)
    assert round.reason == "an operator must approve: it learned from 4 users, fewer than 9"


@pytest.mark.parametrize("call", ["approve", "reject"])
async def test_a_round_that_waits_for_nobody_can_be_neither_approved_nor_turned_down(start: Start, call: str) -> None:
    small = await start()
    round = await small.ask_for_round()
    with pytest.raises(Conflict) as refused:
        await getattr(small.rounds, call)(round.n, who="tess", reason=None)
    assert refused.value.code == "nothing_to_approve"


# --- after the promotion ------------------------------------------------------------------------------

WATCH = {"minutes": 60}


async def test_a_promoted_adapter_that_people_dislike_is_taken_back_by_itself_once(start: Start) -> None:
    small = await start(watch=WATCH)
    await ask(small, 120)
    promoted = await small.round()
    assert promoted.watch is not None and promoted.watch["open"]
    await ask(small, 60)
    await small.rounds.settle()
    assert await small.answers_by() == {promoted.adapter}
    await ask(small, 60, dislike=lambda adapter: True)
    await small.rounds.settle()
    assert await small.answers_by() == {BASE}
    ended = await small.store.rounds.get(promoted.n)
    assert ended.watch is not None
    assert (ended.state, ended.watch["open"], ended.watch["ended"]) == (RoundState.PROMOTED, False, "rolled_back")
    assert ended.watch["why"].startswith("disliked: ")
    assert await alarms(small) == [AlarmKind.ROLLBACK]
    assert await small.rounds.settle() is None
    assert (await audited(small))[-1] == (f"watch of round {ended.n}", "rollback")
    assert await small.answers_by() == {BASE}, "and it stays so"


async def test_a_conductor_that_dies_while_it_takes_an_adapter_back_is_followed_by_one_that_does(start: Start) -> None:
    small = await start(watch=WATCH)
    await ask(small, 120)
    promoted = await small.round()
    await ask(small, 60, dislike=lambda adapter: True)

    async def die() -> None:
        raise Killed

    small.host.before["flip"] = die
    with pytest.raises(Killed):
        await small.rounds.settle()
    small.restart_conductor()
    await small.rounds.settle()
    ended = await small.store.rounds.get(promoted.n)
    assert ended.watch is not None
    assert (ended.watch["open"], ended.watch["ended"]) == (False, "rolled_back")
    assert (await small.store.route.read()).stable == BASE
    assert [action for _, action in await audited(small)] == ["promote", "rollback"]


async def test_a_watch_ends_with_its_time_and_the_adapter_stays(start: Start) -> None:
    small = await start(watch={"minutes": 1e-6})
    promoted = await small.round()
    await small.rounds.settle()
    ended = await small.store.rounds.get(promoted.n)
    assert ended.watch is not None
    assert (ended.watch["open"], ended.watch["ended"], ended.watch["why"]) == (False, "kept", "nobody asked")
    [told] = [event.data for event in await small.store.rounds.events(ended.n) if event.kind == "watch"]
    assert (told["ended"], told["adapter"]) == ("kept", ended.adapter)


async def test_a_watch_of_an_adapter_that_answers_no_more_ends(start: Start) -> None:
    small = await start(watch=WATCH)
    promoted = await small.round()
    await small.registry.rollback(who="tess")
    await small.rounds.settle()
    ended = await small.store.rounds.get(promoted.n)
    assert ended.watch is not None
    assert (ended.watch["ended"], ended.watch["why"]) == ("overtaken", "base answers")


async def test_no_round_starts_by_itself_while_an_adapter_is_watched(start: Start) -> None:
    small = await start(watch=WATCH, rounds={"new_pairs": 2})
    await small.round()
    await small.like("third question", "fourth question")
    assert await small.triggers.look() is None
    assert (await small.triggers.status())["waits_for"] == "the adapter that was promoted last is still watched"


async def test_where_nothing_is_watched_nothing_is_left_to_do(start: Start) -> None:
    small = await start(watch={"minutes": 0})
    assert (await small.round()).watch is None
    assert await small.rounds.settle() is None
