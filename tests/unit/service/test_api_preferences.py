"""`/ops/preferences` and `/ops/quarantine` over HTTP: every vote once, with what became of it, however it is asked for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from service.overview import QUICK_PAIRS, QUICK_VOTES
from service.store.audit import pseudonym
from service.store.store import Store
from service.votes import FeedbackBody, Rating, Rival
from serving.contracts import Caller
from tests.small_service import Refusal, SmallService, refusal

PREFERENCES, QUARANTINE = "/ops/preferences", "/ops/quarantine"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    """One pair a user and round, and nine votes at once are a burst."""
    sections = {"preferences": {"max_pairs_per_user": 1}, "quarantine": {"burst_votes": 9}}
    return await SmallService.start(store, tmp_path, sections=sections)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    return await small.operator()


async def _ask(small: SmallService, question: str, n: int = 2, app: str = "shop") -> str:
    body = {"model": "policy", "n": n, "messages": [{"role": "user", "content": question}]}
    return (await small.replica.chat(body, Caller(app=app))).completion_id


async def _vote(small: SmallService, id: str, choice: int = 0, app: str = "shop", **says: Any) -> None:
    body = FeedbackBody(completion_id=id, choice_index=choice, **says)
    await small.store.feedback.put(app, body)


async def _pair(small: SmallService, question: str, app: str = "shop", **fields: Any) -> str:
    id = await _ask(small, question, app=app)
    await _vote(small, id, 0, app, rating=Rating.UP, **fields)
    await _vote(small, id, 1, app, rating=Rating.DOWN, **fields)
    return id


async def _votes(operator: httpx.AsyncClient, query: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """All pages of what the query asks for."""
    votes: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await operator.get(f"{PREFERENCES}?limit={limit}{query}{after}")).json()
        assert len(page["votes"]) <= limit
        votes += page["votes"]
        if page["next"] is None:
            return votes
        after = f"&after={page['next']}"


# --- votes --------------------------------------------------------------------------------------------


async def test_a_vote_is_shown_with_all_that_it_says(small: SmallService, operator: httpx.AsyncClient) -> None:
    id = await _ask(small, "why?")
    await _vote(small, id, 1, preferred_over=Rival(choice_index=0), user="ada", tags=("tone",))
    (vote,) = await _votes(operator)
    assert {name: vote[name] for name in ("app", "user", "kind", "rating", "tie", "tags", "adapter")} == {
        "app": "shop", "user": "ada", "kind": "comparison", "rating": None, "tie": False, "tags": ["tone"],
        "adapter": "base",
    }  # fmt: skip
    assert (vote["completion_id"], vote["choice_index"]) == (id, 1)
    assert (vote["rival_completion_id"], vote["rival_choice_index"]) == (id, 0)
    assert (vote["status"], vote["reason"], vote["source"]) == ("paired", None, "side_by_side")


async def test_votes_are_found_by_whatever_they_have(small: SmallService, operator: httpx.AsyncClient) -> None:
    first = await _pair(small, "first", user="ada", tags=("tone",))
    second = await _pair(small, "second", user="bob", app="help")
    lonely = await _ask(small, "third")
    await _vote(small, lonely, user="eve", rating=Rating.UP)

    async def found(query: str) -> set[str]:
        return {vote["completion_id"] for vote in await _votes(operator, query)}

    assert await found("") == {first, second, lonely}
    assert await found("&app=help") == {second}
    assert await found("&user=ada") == {first}
    assert await found("&tag=tone") == {first}
    assert await found("&tag=other") == set()
    assert await found("&source=siblings") == {first, second}
    assert await found("&source=siblings&user=bob") == {second}
    assert await found("&status=paired") == {first, second}
    assert await found("&status=left_out") == await found("&reason=no_partner") == {lonely}
    assert await found("&status=paired&reason=no_partner") == set()
    assert await found("&objective=kto&status=thumb") == {lonely}
    assert await found("&objective=kto&reason=no_partner") == set()


async def test_a_vote_whose_pair_a_guard_left_out_says_why(small: SmallService, operator: httpx.AsyncClient) -> None:
    first = await _pair(small, "first", user="ada")
    second = await _pair(small, "second", user="ada")
    funnel = (await operator.get(PREFERENCES)).json()["funnel"]
    assert (funnel["left_out"], funnel["pairs_from_votes"]) == ({"user_cap": 2}, 1)
    capped = await _votes(operator, "&reason=user_cap")
    assert [(vote["completion_id"], vote["status"]) for vote in capped] == [(second, "left_out")] * 2
    assert {vote["completion_id"] for vote in await _votes(operator, "&status=paired")} == {first}
    await small.store.feedback.retract("shop", (await _votes(operator, "&status=paired"))[0]["feedback_id"])
    assert {vote["completion_id"] for vote in await _votes(operator, "&status=paired")} == {second}


@pytest.mark.parametrize("objective", ["dpo", "dpo%2Bkto"])
async def test_every_vote_is_on_one_page_and_the_sums_are_those_of_the_pages(
    small: SmallService, operator: httpx.AsyncClient, objective: str
) -> None:
    dice = random.Random(3)
    ids = [await _ask(small, f"question {n % 4}", n=3) for n in range(8)]
    for id in ids * 4:
        choice, rival = dice.sample(range(3), 2)
        says: list[dict[str, Any]] = [
            {"rating": Rating.UP}, {"rating": Rating.DOWN}, {"correction": "in other words"},
            {"preferred_over": Rival(choice_index=rival, tie=dice.random() < 0.3)},
        ]  # fmt: skip
        await _vote(small, id, choice, user=dice.choice(["ada", "bob", None]), **dice.choice(says))
    asked = f"&objective={objective}"
    votes = await _votes(operator, asked, limit=7)
    assert [vote["seq"] for vote in votes] == sorted({vote["seq"] for vote in votes}, reverse=True)
    funnel = (await operator.get(f"{PREFERENCES}?{asked}")).json()["funnel"]
    assert funnel["votes"] == len(votes)
    assert funnel["left_out"] == Counter(vote["reason"] for vote in votes if vote["reason"] is not None)
    statuses = Counter(vote["status"] for vote in votes)
    assert (funnel["votes_in_pairs"], funnel["votes_in_thumbs"]) == (statuses["paired"], statuses["thumb"])
    for query, matches in [
        *((f"&status={s}", lambda vote, s=s: vote["status"] == s) for s in ("paired", "thumb", "left_out")),
        *((f"&reason={r}", lambda vote, r=r: vote["reason"] == r) for r in funnel["left_out"]),
    ]:
        assert await _votes(operator, asked + query, limit=5) == [vote for vote in votes if matches(vote)], query


@pytest.mark.parametrize(
    ("query", "param"),
    [("reason=bored", "reason"), ("status=lost", "status"), ("source=rumour", "source"), ("limit=1001", "limit"),
     ("after=-1", "after"), ("objective=nonsense", "objective")],
)  # fmt: skip
async def test_what_there_is_not_cannot_be_asked_for(operator: httpx.AsyncClient, query: str, param: str) -> None:
    assert refusal(await operator.get(f"{PREFERENCES}?{query}")).param == param


# --- at once ------------------------------------------------------------------------------------------


async def test_what_guards_said_is_not_asked_again_until_something_changes(
    small: SmallService, operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    await _pair(small, "first", user="ada")
    assert len(await _votes(operator, "&status=paired")) == 2
    with database_engine.begin() as connection:
        connection.execute(text("UPDATE preference_pairs SET left_out = 'dictated'"))
    assert len(await _votes(operator, "&reason=dictated")) == 2, "it is what was kept"
    await _pair(small, "second", user="bob")
    assert len(await _votes(operator, "&status=paired")) == 4


@pytest.mark.parametrize(("guard", "left_out"), [({}, 2), ({"max_adapters_behind": 9}, 0)], ids=["none", "one"])
async def test_a_swap_is_looked_at_only_by_guards_that_go_by_it(
    store: Store, tmp_path: Path, database_engine: Engine, guard: dict[str, int], left_out: int
) -> None:
    small = await SmallService.start(store, tmp_path, sections={"preferences": guard})
    operator = await small.operator()
    await _pair(small, "first", user="ada")
    assert len(await _votes(operator, "&status=paired")) == 2
    with database_engine.begin() as connection:
        connection.execute(text("UPDATE preference_pairs SET left_out = 'dictated'"))
        connection.execute(text("UPDATE route SET generation = generation + 1"))
    assert len(await _votes(operator, "&reason=dictated")) == left_out


async def test_a_read_does_not_wait_until_very_much_is_matched_and_says_so(
    small: SmallService, operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    await _pair(small, "first", user="ada")
    assert (await operator.get(PREFERENCES)).json()["up_to_date"]
    await _pair(small, "second", user="bob")
    with database_engine.begin() as connection:
        many = "INSERT INTO stale_prompts (app, prompt_digest) SELECT 'x', n::text FROM generate_series(1, :many) AS n"
        connection.execute(text(many), {"many": QUICK_VOTES})
    shown = (await operator.get(PREFERENCES)).json()
    assert (shown["up_to_date"], shown["funnel"]["pairs_from_votes"]) == (False, 1)
    shown = (await operator.get(f"{PREFERENCES}?wait=true")).json()
    assert (shown["up_to_date"], shown["funnel"]["pairs_from_votes"]) == (True, 2)


async def test_a_read_does_not_wait_until_guards_have_looked_at_very_many_pairs(
    small: SmallService, operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    await _pair(small, "first", user="ada")
    assert (await operator.get(PREFERENCES)).json()["up_to_date"]
    with database_engine.begin() as connection:
        many = """
            INSERT INTO preference_pairs (id, source, prompt_digest, votes, voters, charged_to, adapters, tags,
                chosen_length, rejected_length, copied, signature)
            SELECT n::text, 'import', n::text, '{}', '{}', '{}', '{}', '{}', 1, 1, 0, array_fill(n, ARRAY[96])
            FROM generate_series(1, :many) AS n
        """
        connection.execute(text(many), {"many": QUICK_PAIRS})
    await _pair(small, "second", user="bob")
    shown = (await operator.get(PREFERENCES)).json()
    assert (shown["up_to_date"], shown["funnel"]["pairs_from_votes"]) == (False, 1)
    assert len(shown["votes"]) == 4, "votes are matched all the same"
    await small.rounds.overview.refresh()
    assert (await operator.get(PREFERENCES)).json()["up_to_date"]


async def test_what_is_said_is_matched_and_guarded_though_nobody_asks(small: SmallService) -> None:
    await _pair(small, "first", user="ada")
    loops = asyncio.create_task(small.rounds.overview.run())
    try:
        while True:
            standing = await small.store.fates.standing()
            if standing.funnels is not None and standing.funnels[False].pairs_from_votes == 1:
                break
            await asyncio.sleep(0)
    finally:
        loops.cancel()
    assert await small.store.prompts.waiting(10) == 0


# --- quarantine ---------------------------------------------------------------------------------------


@pytest.fixture
async def burst(small: SmallService) -> None:
    """Five pairs of bob at once."""
    for n in range(5):
        await _pair(small, f"bob asks {n}", user="bob")
    await small.rounds.overview.bring_up_to_date()


@pytest.mark.usefixtures("burst")
async def test_what_is_held_is_listed_and_released_with_a_reason(operator: httpx.AsyncClient) -> None:
    listed = (await operator.get(QUARANTINE)).json()
    (item,) = listed["data"]
    assert (item["kind"], item["user"], item["status"], item["votes"]) == ("burst", "bob", "held", 10)
    assert listed["next"] is None
    assert (await operator.get(PREFERENCES)).json()["funnel"]["left_out"] == {"quarantined": 10}
    released = await operator.post(f"{QUARANTINE}/{item['id']}/release", json={"reason": "a tester of ours"})
    assert (released.status_code, released.json()["status"], released.json()["decided_by"]) == (200, "released", "tess")
    assert (await operator.get(PREFERENCES)).json()["funnel"]["left_out"] == {"user_cap": 8}
    (entry,) = (await operator.get("/ops/audit")).json()["data"]
    assert (entry["who"], entry["action"], entry["subject"]) == ("tess", "quarantine_released", str(item["id"]))
    assert (entry["detail"]["reason"], entry["detail"]["person"]) == ("a tester of ours", pseudonym("bob", "shop"))
    assert (await operator.get(f"{QUARANTINE}?status=held")).json()["data"] == []
    assert len((await operator.get(f"{QUARANTINE}?status=released")).json()["data"]) == 1


@pytest.mark.usefixtures("burst")
async def test_what_is_dropped_shows_so_and_is_dropped_once(operator: httpx.AsyncClient) -> None:
    (item,) = (await operator.get(QUARANTINE)).json()["data"]
    dropped = await operator.post(f"{QUARANTINE}/{item['id']}/drop")
    assert dropped.json()["status"] == "dropped"
    assert (await operator.get(PREFERENCES)).json()["funnel"]["left_out"] == {"dropped": 10}
    again = await operator.post(f"{QUARANTINE}/{item['id']}/drop")
    assert refusal(again) == Refusal(409, "already_decided", "id")


async def test_what_is_not_there_cannot_be_released(operator: httpx.AsyncClient) -> None:
    assert refusal(await operator.post(f"{QUARANTINE}/7/release")) == Refusal(404, "quarantine_not_found", "id")
    assert refusal(await operator.post(f"{QUARANTINE}/7/drop", json={"why": "x"})).code == "unknown_parameter"


async def test_an_app_s_key_opens_none_of_it(small: SmallService, operator: httpx.AsyncClient) -> None:
    app = await small.app()
    secret = app.headers["authorization"]
    for call in (operator.get(QUARANTINE, headers={"authorization": secret}),
                 operator.post(f"{QUARANTINE}/1/release", headers={"authorization": secret})):  # fmt: skip
        assert (await call).status_code == 403
