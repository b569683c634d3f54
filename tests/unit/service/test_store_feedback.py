from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import Conflict, NotFound
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    """Two choices that the app `shop` was given."""
    await store.completions.record(make_completion("chatcmpl-1", "one", "two", adapter="policy-0001-aaaaaaaa"))


def _vote(rating: Rating = Rating.UP, **fields: Any) -> FeedbackBody:
    return FeedbackBody(**({"completion_id": "chatcmpl-1", "user": "ada", "rating": rating} | fields))


async def _effective(store: Store) -> list[tuple[int, str | None, Rating]]:
    return [(vote.choice_index, vote.user, vote.rating) for vote in await store.preferences.effective_votes()]


async def test_a_vote_is_new_effective_and_names_the_adapter_that_answered(store: Store) -> None:
    receipt, created = await store.feedback.put("shop", _vote())
    assert created
    assert receipt.effective
    assert receipt.adapter == "policy-0001-aaaaaaaa"
    assert re.fullmatch(r"fb_[0-9a-f]{24}", receipt.feedback_id)


@pytest.mark.parametrize(
    ("app", "fields"),
    [("shop", {"completion_id": "chatcmpl-2"}), ("shop", {"choice_index": 2}), ("other", {})],
    ids=["unknown completion", "unknown choice", "another app's completion"],
)
async def test_what_the_app_was_never_given_is_not_found(store: Store, app: str, fields: dict[str, Any]) -> None:
    body = _vote(**fields)
    with pytest.raises(NotFound) as refused:
        await store.feedback.put(app, body)
    assert refused.value.message == (
        f"This app has no completion '{body.completion_id}' with a choice {body.choice_index}."
    )
    assert await _effective(store) == []


async def test_the_last_vote_of_a_user_on_a_choice_stands(store: Store) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP, feedback_id="mine"))
    await store.feedback.put("shop", _vote(Rating.DOWN))
    repeated, created = await store.feedback.put("shop", _vote(Rating.UP, feedback_id="mine"))
    assert (first.effective, repeated.effective, created) == (True, False, False)
    assert await _effective(store) == [(0, "ada", Rating.DOWN)]


async def test_users_and_choices_do_not_overwrite_each_other(store: Store) -> None:
    votes = [_vote(), _vote(user="bob"), _vote(user=None), _vote(choice_index=1)]
    for vote in votes:
        receipt, _ = await store.feedback.put("shop", vote)
        assert receipt.effective
    assert await _effective(store) == [
        (0, "ada", Rating.UP),
        (0, "bob", Rating.UP),
        (0, None, Rating.UP),
        (1, "ada", Rating.UP),
    ]


async def test_the_same_feedback_id_and_body_answer_with_the_first_receipt(store: Store) -> None:
    first, created = await store.feedback.put("shop", _vote(feedback_id="mine", tags=("kind",)))
    second, created_again = await store.feedback.put("shop", _vote(feedback_id="mine", tags=("kind",)))
    assert (first, created, created_again) == (second, True, False)
    assert len(await _effective(store)) == 1


async def test_the_same_feedback_id_with_another_body_is_a_conflict(store: Store) -> None:
    await store.feedback.put("shop", _vote(feedback_id="mine"))
    with pytest.raises(Conflict) as refused:
        await store.feedback.put("shop", _vote(feedback_id="mine", comment="on second thoughts"))
    assert refused.value.code == "idempotency_conflict"


async def test_apps_may_use_the_same_feedback_id(store: Store, make_completion: Callable[..., Completion]) -> None:
    await store.completions.record(make_completion("chatcmpl-2", app="other"))
    await store.feedback.put("shop", _vote(feedback_id="mine"))
    _, created = await store.feedback.put("other", _vote(completion_id="chatcmpl-2", feedback_id="mine"))
    assert created


async def test_of_many_simultaneous_deliveries_of_one_vote_one_is_new(store: Store) -> None:
    answers = await asyncio.gather(*(store.feedback.put("shop", _vote(feedback_id="mine")) for _ in range(8)))
    assert sum(created for _, created in answers) == 1
    assert len({receipt.model_dump_json() for receipt, _ in answers}) == 1


async def test_a_retracted_vote_does_not_bring_an_older_one_back(store: Store) -> None:
    await store.feedback.put("shop", _vote(Rating.UP))
    last, _ = await store.feedback.put("shop", _vote(Rating.DOWN, feedback_id="last"))
    await store.feedback.retract("shop", last.feedback_id)
    await store.feedback.retract("shop", last.feedback_id)
    assert await _effective(store) == []
    repeated, created = await store.feedback.put("shop", _vote(Rating.DOWN, feedback_id="last"))
    assert (repeated.effective, created) == (False, False)


async def test_retracting_an_overwritten_vote_leaves_the_last_one(store: Store) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP))
    await store.feedback.put("shop", _vote(Rating.DOWN))
    await store.feedback.retract("shop", first.feedback_id)
    assert await _effective(store) == [(0, "ada", Rating.DOWN)]


async def test_a_user_may_vote_again_after_retracting(store: Store) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP))
    await store.feedback.retract("shop", first.feedback_id)
    again, _ = await store.feedback.put("shop", _vote(Rating.UP))
    assert again.effective
    assert await _effective(store) == [(0, "ada", Rating.UP)]


@pytest.mark.parametrize("app", ["shop", "other"])
async def test_only_the_app_that_sent_a_vote_can_retract_it(store: Store, app: str) -> None:
    receipt, _ = await store.feedback.put("shop", _vote())
    with pytest.raises(NotFound):
        await store.feedback.retract(app, receipt.feedback_id if app == "other" else "unknown")
    assert await _effective(store) == [(0, "ada", Rating.UP)]
