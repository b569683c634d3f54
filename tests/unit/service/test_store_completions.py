from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, Row, select

from service.store.completions import prompt_digest
from service.store.store import Store
from service.store.tables import choices, completions
from serving.contracts import Completion

MakeCompletion = Callable[..., Completion]


def _kept(engine: Engine) -> tuple[Row[Any], list[Row[Any]]]:
    with engine.connect() as connection:
        return connection.execute(select(completions)).one(), list(
            connection.execute(select(choices).order_by(choices.c.choice_index))
        )


async def test_a_completion_is_kept_with_every_choice_and_its_exact_token_ids(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    completion = make_completion("chatcmpl-1", "short", "long", prompt_token_ids=(5, 2**31 - 1))
    await store.completions.record(completion)
    row, answers = _kept(database_engine)
    assert (row.id, row.app, row.adapter, row.user) == ("chatcmpl-1", "shop", "base", "ada")
    assert row.created_at == completion.created_at
    assert row.messages == completion.messages
    assert row.prompt_token_ids == [5, 2**31 - 1]
    assert row.prompt_digest == prompt_digest((5, 2**31 - 1))
    assert [(a.choice_index, a.text, tuple(a.token_ids)) for a in answers] == [
        (0, "short", completion.choices[0].token_ids),
        (1, "long", completion.choices[1].token_ids),
    ]


async def test_store_false_keeps_the_text_and_the_token_ids_out(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    await store.completions.record(make_completion("chatcmpl-1", "a secret", store=False))
    row, (answer,) = _kept(database_engine)
    assert (row.messages, row.prompt_token_ids, answer.text, answer.token_ids) == (None, None, None, None)
    assert row.prompt_digest == prompt_digest((1, 2, 3))


async def test_recording_the_same_id_again_changes_nothing(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    for text in ("first", "second"):
        await store.completions.record(make_completion("chatcmpl-1", text))
    _, (answer,) = _kept(database_engine)
    assert answer.text == "first"


async def test_text_that_a_database_cannot_hold_does_not_lose_the_answer(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    messages = [{"role": "user", "content": "half \ud83d of a smile\0"}]
    await store.completions.record(make_completion("chatcmpl-1", "nul \0", messages=messages, user="a\0b"))
    row, (answer,) = _kept(database_engine)
    assert row.messages == [{"role": "user", "content": "half \ufffd of a smile\ufffd"}]
    assert (row.user, answer.text, answer.token_ids) == ("a\ufffdb", "nul \ufffd", list(b"nul \0"))


def test_the_prompt_digest_is_over_little_endian_32_bit_integers() -> None:
    assert prompt_digest((1, 258)) == hashlib.sha256(b"\x01\0\0\0\x02\x01\0\0").hexdigest()
    assert prompt_digest([1, 258]) == prompt_digest((1, 258)) != prompt_digest((258, 1))


async def test_a_request_that_did_not_finish_is_kept_with_how_it_ended_and_how_long_it_took(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    half = make_completion("chatcmpl-1", "hal", outcome="cancelled", first_token_seconds=0.5, seconds=2.0)
    await store.completions.record(half)
    row, (answer,) = _kept(database_engine)
    assert (row.outcome, row.first_token_seconds, row.seconds) == ("cancelled", 0.5, 2.0)
    assert answer.tokens == len(half.choices[0].token_ids)


async def test_a_request_that_broke_is_kept_without_choices_and_beside_others(
    store: Store, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    broken = make_completion("chatcmpl-1", outcome="failed", prompt_token_ids=()).model_copy(update={"choices": ()})
    await asyncio.gather(store.completions.record(broken), store.completions.record(make_completion("chatcmpl-2")))
    with database_engine.connect() as connection:
        outcomes = {row.id: row.outcome for row in connection.execute(select(completions))}
        answered = [row.completion_id for row in connection.execute(select(choices))]
    assert outcomes == {"chatcmpl-1": "failed", "chatcmpl-2": "finished"}
    assert answered == ["chatcmpl-2"]
