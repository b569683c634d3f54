"""Lineage both ways, over two rounds: what a vote has led to, and what an answer comes from."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.contracts import Round
from service.store.lineage import Kind
from service.store.store import Store
from service.tracing import Step, Trace, trace
from service.votes import FeedbackBody, Rival
from serving.contracts import Caller
from tests.small_service import Refusal, SmallService, refusal


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


async def two_rounds(small: SmallService) -> tuple[list[str], Round, list[str], Round]:
    """Votes, a round, votes on what its adapter answers, another round; the completions' ids."""
    asked = await small.like("first question", "second question")
    first = await small.round()
    asked_later = await small.like("third question", "fourth question", "fifth question")
    return asked, first, asked_later, await small.round()


def totals(steps: tuple[Step, ...]) -> dict[Kind, int]:
    return {step.kind: step.total for step in steps}


def ids(trace: Trace, side: str, kind: Kind) -> set[str]:
    steps: tuple[Step, ...] = getattr(trace, side)
    return {str(thing["id"]) for step in steps if step.kind == kind for thing in step.shown}


async def test_a_vote_leads_to_all_that_was_learned_from_it(small: SmallService) -> None:
    asked, first, later, second = await two_rounds(small)
    vote = (await small.store.lineage.follow("completion", asked[0], "vote", forward=True, limit=9))[1][0]
    found = await trace(small.store, "vote", str(vote.id))
    assert [step.kind for step in found.leads_to] == ["pair", "round", "adapter", "completion"]
    assert totals(found.leads_to) == {"pair": 1, "round": 1, "adapter": 2, "completion": 3}
    assert ids(found, "leads_to", "round") == {str(first.n)}
    assert ids(found, "leads_to", "adapter") == {first.adapter, second.adapter}, "the second continues the first"
    assert ids(found, "leads_to", "completion") == set(later)
    assert totals(found.comes_from) == {"completion": 1, "adapter": 0, "round": 0, "pair": 0}, "the base answered"
    assert (await trace(small.store, "vote", vote.feedback_id)).leads_to == found.leads_to


async def test_an_answer_comes_from_the_votes_that_shaped_its_adapter(small: SmallService) -> None:
    asked, first, later, _ = await two_rounds(small)
    found = await trace(small.store, "completion", later[0])
    assert [step.kind for step in found.comes_from] == ["adapter", "round", "pair", "vote"]
    assert totals(found.comes_from) == {"adapter": 1, "round": 1, "pair": 2, "vote": 4}
    assert ids(found, "comes_from", "round") == {str(first.n)}
    assert totals(found.leads_to) == {"vote": 2, "pair": 1, "round": 1, "adapter": 1}
    assert {thing["completion_id"] for step in found.comes_from[3:] for thing in step.shown} == set(asked)


async def test_a_round_and_its_adapter_stand_between_their_pairs_and_their_answers(small: SmallService) -> None:
    _, first, later, second = await two_rounds(small)
    of_round = await trace(small.store, "round", str(second.n))
    assert totals(of_round.comes_from) == {"pair": 3, "vote": 6, "completion": 3, "adapter": 1}
    assert totals(of_round.leads_to) == {"adapter": 1, "completion": 0, "vote": 0, "pair": 0}
    assert ids(of_round, "comes_from", "adapter") == {first.adapter}
    assert second.adapter is not None
    of_adapter = await trace(small.store, "adapter", second.adapter)
    assert totals(of_adapter.comes_from) == {"round": 2, "pair": 5, "vote": 10, "completion": 5}, (
        "what it continues too"
    )
    assert first.adapter is not None
    of_first = await trace(small.store, "adapter", first.adapter)
    assert totals(of_first.leads_to) == {"completion": 3, "vote": 6, "pair": 3, "round": 1}
    assert ids(of_first, "leads_to", "completion") == set(later)


async def test_a_pair_says_which_round_took_it_and_for_what(small: SmallService) -> None:
    _, first, _, _ = await two_rounds(small)
    taken = (await small.store.lineage.follow("round", str(first.n), "pair", forward=False, limit=9))[1]
    assert {row.split for row in taken} <= {"train", "held_out"}
    found = await trace(small.store, "pair", taken[0].id)
    assert found.found[0]["round"] == first.n
    assert totals(found.comes_from) == {"vote": 2, "completion": 1, "adapter": 0, "round": 0}
    assert totals(found.leads_to) == {"round": 1, "adapter": 2, "completion": 3, "vote": 6}


async def test_a_pair_that_no_round_has_taken_leads_nowhere_yet(small: SmallService) -> None:
    (asked,) = await small.like("a question")
    await small.rounds.overview.bring_up_to_date()
    vote = (await small.store.lineage.follow("completion", asked, "vote", forward=True, limit=9))[1][0]
    found = await trace(small.store, "vote", str(vote.id))
    assert totals(found.leads_to) == {"pair": 1, "round": 0, "adapter": 0, "completion": 0}
    (pair,) = ids(found, "leads_to", "pair")
    assert (await trace(small.store, "pair", pair)).found[0]["round"] is None


async def test_a_comparison_comes_from_both_answers(small: SmallService) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "a question"}]}
    one, other = [(await small.replica.chat(body, Caller(app="shop"))).completion_id for _ in range(2)]
    rival = Rival(completion_id=other)
    await small.store.feedback.put(
        "shop", FeedbackBody(completion_id=one, preferred_over=rival, user="ada", feedback_id="fb/1")
    )
    found = await trace(small.store, "vote", "fb/1")
    assert ids(found, "comes_from", "completion") == {one, other}
    assert totals((await trace(small.store, "completion", other)).leads_to)["vote"] == 1


async def test_only_the_newest_are_named_and_all_are_counted(small: SmallService) -> None:
    _, first, _, _ = await two_rounds(small)
    found = await trace(small.store, "round", str(first.n), shown=1)
    assert all(len(step.shown) <= 1 for step in (*found.comes_from, *found.leads_to))
    assert totals(found.comes_from)["pair"] == 2


@pytest.mark.parametrize("kind", ["vote", "pair", "round", "adapter", "completion"])
@pytest.mark.parametrize("id", ["nobody", "7", "9" * 30, "a/b"])
async def test_what_is_not_there_is_not_found(small: SmallService, kind: str, id: str) -> None:
    answer = await (await small.operator()).get(f"/ops/lineage/{kind}/{id}")
    assert refusal(answer) == Refusal(404, f"{kind}_not_found", "id")


async def test_an_unknown_kind_is_refused_and_an_app_s_key_too(small: SmallService) -> None:
    operator = await small.operator()
    assert refusal(await operator.get("/ops/lineage/person/ada")) == Refusal(400, "invalid_value", "kind")
    app = await small.app()
    operations = httpx.AsyncClient(
        transport=httpx.ASGITransport(small.operations_app()), base_url="http://heliotrope", headers=app.headers
    )
    assert (await operations.get("/ops/lineage/round/1")).status_code == 403
