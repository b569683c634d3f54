"""Preferences with their texts as they leave the store: pairs, thumbs and corrections of votes, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text

from service.exchange.exports import Exportable, Status, exported
from service.store.store import Store
from service.store.tables import feedback, preference_pairs
from service.votes import FeedbackBody
from serving.contracts import Completion

Make = Callable[..., Completion]
Keep = Callable[..., None]
PROMPT = [{"role": "user", "content": "a question"}]


@pytest.fixture
def keep(database_engine: Engine) -> Keep:
    """Writes a row as matching does: `id`, the indices of the choices of completion `c`, and what else is named."""

    def keep(id: str, chosen: int | None, rejected: int | None, **fields: Any) -> None:
        sides: dict[str, Any] = {}
        for side, index in (("chosen", chosen), ("rejected", rejected)):
            sides |= {f"{side}_completion_id": None if index is None else "c", f"{side}_choice_index": index}
        row = {
            "id": id, "source": "siblings", "app": "shop", "prompt_digest": "0", "votes": [1], "voter": "v",
            "voters": ["v"], "charged_to": ["v"], "adapters": [], "tags": [], "voted_at": datetime(2026, 1, 2, tzinfo=UTC),
            "chosen_length": 1, "rejected_length": 1, "copied": 0.0, "signature": [],
        }  # fmt: skip
        with database_engine.begin() as connection:
            connection.execute(insert(preference_pairs).values(row | sides | fields))

    return keep


async def page(store: Store, status: Status = "open") -> list[Exportable]:
    return await store.exports.page(status, "", 10)


async def test_a_pair_has_the_prompt_and_the_served_texts(store: Store, make_completion: Make, keep: Keep) -> None:
    await store.completions.record(make_completion("c", "good", "bad"))
    keep("p", 0, 1)
    assert await page(store) == [Exportable("p", PROMPT, "good", "bad", is_thumb=False)]


async def test_of_a_correction_the_users_own_text_is_chosen(
    store: Store, make_completion: Make, keep: Keep, database_engine: Engine
) -> None:
    await store.completions.record(make_completion("c", "bad"))
    await store.feedback.put("shop", FeedbackBody(completion_id="c", correction="better"))
    with database_engine.connect() as connection:
        seq = connection.execute(select(feedback.c.seq)).scalar_one()
    keep("p", None, 0, source="correction", correction=seq)
    assert await page(store) == [Exportable("p", PROMPT, "better", "bad", is_thumb=False)]


async def test_a_single_thumb_has_the_one_answer(store: Store, make_completion: Make, keep: Keep) -> None:
    await store.completions.record(make_completion("c", "good", "bad"))
    keep("p", 0, None, source="thumb")
    keep("q", None, 1, source="thumb")
    assert await page(store) == [
        Exportable("p", PROMPT, "good", None, is_thumb=True),
        Exportable("q", PROMPT, None, "bad", is_thumb=True),
    ]


async def test_parts_of_a_message_are_one_text(store: Store, make_completion: Make, keep: Keep) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts, "name": "ada"}]
    await store.completions.record(make_completion("c", "good", "bad", messages=messages))
    keep("p", 0, 1)
    (found,) = await page(store)
    assert found.prompt == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize("gone", ["UPDATE completions SET messages = NULL", "UPDATE choices SET text = NULL",
                                  "UPDATE completions SET redacted = true"])  # fmt: skip
async def test_what_is_no_longer_stored_is_left_out_and_counted(
    store: Store, make_completion: Make, keep: Keep, database_engine: Engine, gone: str
) -> None:
    await store.completions.record(make_completion("c", "good", "bad"))
    keep("p", 0, 1)
    keep("q", 1, None, source="thumb")
    with database_engine.begin() as connection:
        connection.execute(text(gone))
    written = [line async for line in exported(store.exports, "kto", "open", summary=True)]
    counts = {"pairs": 0, "thumbs": 0, "lines": 0, "not_stored": 2, "votes_left_out": {}}
    assert [json.loads(line) for line in written] == [{"summary": counts}]


async def test_votes_on_what_was_never_stored_are_counted(
    store: Store, make_completion: Make, database_engine: Engine
) -> None:
    await store.completions.record(make_completion("c", store=False))
    await store.feedback.put("shop", FeedbackBody(completion_id="c", correction="better"))
    with database_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO vote_fates (seq, app, prompt_digest, reason) SELECT seq, app, '0', 'not_stored' FROM feedback"
            )
        )
    assert await store.exports.unstored_votes() == {"not_stored": 1}


async def test_what_guards_leave_out_is_only_in_all(store: Store, make_completion: Make, keep: Keep) -> None:
    await store.completions.record(make_completion("c", "good", "bad"))
    keep("p", 0, 1)
    keep("q", 1, 0, left_out="user_cap")
    assert [found.id for found in await page(store)] == ["p"]
    assert [found.id for found in await page(store, "all")] == ["p", "q"]


async def test_pages_follow_each_other_until_there_are_no_more(store: Store, make_completion: Make, keep: Keep) -> None:
    await store.completions.record(make_completion("c", "good", "bad"))
    for n in range(5):
        keep(f"p{n}", 0, 1)
    found, after = [], ""
    while some := await store.exports.page("all", after, 2):
        found.append([pair.id for pair in some])
        after = some[-1].id
    assert found == [["p0", "p1"], ["p2", "p3"], ["p4"]]
