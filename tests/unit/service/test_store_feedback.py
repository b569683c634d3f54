from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.errors import BadRequest, Conflict, NotFound
from service.keeping.redaction import RedactionFailed
from service.store.store import Store
from service.tokens import Grant
from service.votes import FeedbackBody, Rating
from serving.contracts import Completion
from tests.voting import effective_in, votes_in

ONE, OTHER, TALK = "chatcmpl-1", "chatcmpl-2", "chatcmpl-3"  # the first two answer one prompt


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    """What the app `shop` was given: two answers twice to one prompt, and one to another prompt."""
    await store.completions.record(make_completion(ONE, "one", "two", adapter="policy-0001-aaaaaaaa"))
    await store.completions.record(make_completion(OTHER, "three", "four"))
    await store.completions.record(make_completion(TALK, "hello", prompt_token_ids=(7, 8)))


def _vote(rating: Rating | None = Rating.UP, **fields: Any) -> FeedbackBody:
    return FeedbackBody(**({"completion_id": ONE, "user": "ada", "rating": rating} | fields))


def _prefers(choice: int, over: int, **fields: Any) -> FeedbackBody:
    return _vote(rating=None, choice_index=choice, preferred_over={"choice_index": over}, **fields)


@pytest.fixture
def stale(database_engine: Engine) -> Callable[[], int]:
    """How many prompts wait to be matched; they no longer do when this has told."""

    def take() -> int:
        with database_engine.begin() as connection:
            return connection.execute(text("DELETE FROM stale_prompts")).rowcount

    return take


async def test_a_vote_is_new_effective_and_names_the_adapter_that_answered(store: Store) -> None:
    receipt, created = await store.feedback.put("shop", _vote())
    assert created
    assert receipt.effective
    assert receipt.adapter == "policy-0001-aaaaaaaa"
    assert re.fullmatch(r"fb_[0-9a-f]{24}", receipt.feedback_id)


@pytest.mark.parametrize(
    ("app", "fields"),
    [("shop", {"completion_id": "chatcmpl-0"}), ("shop", {"choice_index": 2}), ("other", {})],
    ids=["unknown completion", "unknown choice", "another app's completion"],
)
async def test_what_the_app_was_never_given_is_not_found(
    store: Store, database_engine: Engine, app: str, fields: dict[str, Any]
) -> None:
    body = _vote(**fields)
    with pytest.raises(NotFound) as refused:
        await store.feedback.put(app, body)
    assert refused.value.message == (
        f"This app has no completion '{body.completion_id}' with a choice {body.choice_index}."
    )
    assert effective_in(database_engine) == []


async def test_the_last_vote_of_a_user_on_a_choice_stands(store: Store, database_engine: Engine) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP, feedback_id="mine"))
    await store.feedback.put("shop", _vote(Rating.DOWN))
    repeated, created = await store.feedback.put("shop", _vote(Rating.UP, feedback_id="mine"))
    assert (first.effective, repeated.effective, created) == (True, False, False)
    assert effective_in(database_engine) == [(0, "ada", Rating.DOWN)]


async def test_users_and_choices_do_not_overwrite_each_other(store: Store, database_engine: Engine) -> None:
    votes = [_vote(), _vote(user="bob"), _vote(user=None), _vote(choice_index=1)]
    for vote in votes:
        receipt, _ = await store.feedback.put("shop", vote)
        assert receipt.effective
    assert effective_in(database_engine) == [
        (0, "ada", Rating.UP),
        (0, "bob", Rating.UP),
        (0, "", Rating.UP),
        (1, "ada", Rating.UP),
    ]


async def test_the_same_feedback_id_and_body_answer_with_the_first_receipt(
    store: Store, database_engine: Engine
) -> None:
    first, created = await store.feedback.put("shop", _vote(feedback_id="mine", tags=("kind",)))
    second, created_again = await store.feedback.put("shop", _vote(feedback_id="mine", tags=("kind",)))
    assert (first, created, created_again) == (second, True, False)
    assert len(effective_in(database_engine)) == 1


async def test_the_same_feedback_id_with_another_body_is_a_conflict(store: Store) -> None:
    await store.feedback.put("shop", _vote(feedback_id="mine"))
    with pytest.raises(Conflict) as refused:
        await store.feedback.put("shop", _vote(feedback_id="mine", comment="on second thoughts"))
    assert refused.value.code == "idempotency_conflict"


async def test_apps_may_use_the_same_feedback_id(store: Store, make_completion: Callable[..., Completion]) -> None:
    await store.completions.record(make_completion("chatcmpl-4", app="other"))
    await store.feedback.put("shop", _vote(feedback_id="mine"))
    _, created = await store.feedback.put("other", _vote(completion_id="chatcmpl-4", feedback_id="mine"))
    assert created


async def test_of_many_simultaneous_deliveries_of_one_vote_one_is_new(store: Store) -> None:
    answers = await asyncio.gather(*(store.feedback.put("shop", _vote(feedback_id="mine")) for _ in range(8)))
    assert sum(created for _, created in answers) == 1
    assert len({receipt.model_dump_json() for receipt, _ in answers}) == 1


async def test_a_retracted_vote_does_not_bring_an_older_one_back(store: Store, database_engine: Engine) -> None:
    await store.feedback.put("shop", _vote(Rating.UP))
    last, _ = await store.feedback.put("shop", _vote(Rating.DOWN, feedback_id="last"))
    await store.feedback.retract("shop", last.feedback_id)
    await store.feedback.retract("shop", last.feedback_id)
    assert effective_in(database_engine) == []
    repeated, created = await store.feedback.put("shop", _vote(Rating.DOWN, feedback_id="last"))
    assert (repeated.effective, created) == (False, False)


async def test_retracting_an_overwritten_vote_leaves_the_last_one(store: Store, database_engine: Engine) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP))
    await store.feedback.put("shop", _vote(Rating.DOWN))
    await store.feedback.retract("shop", first.feedback_id)
    assert effective_in(database_engine) == [(0, "ada", Rating.DOWN)]


async def test_a_user_may_vote_again_after_retracting(store: Store, database_engine: Engine) -> None:
    first, _ = await store.feedback.put("shop", _vote(Rating.UP))
    await store.feedback.retract("shop", first.feedback_id)
    again, _ = await store.feedback.put("shop", _vote(Rating.UP))
    assert again.effective
    assert effective_in(database_engine) == [(0, "ada", Rating.UP)]


@pytest.mark.parametrize("app", ["shop", "other"])
async def test_only_the_app_that_sent_a_vote_can_retract_it(store: Store, database_engine: Engine, app: str) -> None:
    receipt, _ = await store.feedback.put("shop", _vote())
    with pytest.raises(NotFound):
        await store.feedback.retract(app, receipt.feedback_id if app == "other" else "unknown")
    assert effective_in(database_engine) == [(0, "ada", Rating.UP)]


# --- comparisons and corrections ----------------------------------------------------------------------


async def test_each_kind_of_vote_is_kept_with_all_that_it_says(store: Store, database_engine: Engine) -> None:
    said = {"comment": "why", "tags": ("kind", "short")}
    for body in (
        _vote(Rating.DOWN, choice_index=1, **said),
        _prefers(1, 0, **said),
        _prefers(0, 1).model_copy(update={"user": None}),
        _vote(rating=None, preferred_over={"completion_id": OTHER, "tie": True}),
        _vote(rating=None, correction="one!"),
    ):
        assert (await store.feedback.put("shop", body))[0].effective
    said_of = [
        (r.kind, r.target, r.choice_index, r.rating, r.rival_completion_id, r.rival_choice_index, r.tie, r.correction)
        for r in votes_in(database_engine)
    ]
    both = f"{ONE}/0 {ONE}/1"
    assert said_of == [
        ("rating", f"{ONE}/1", 1, "down", None, None, False, None),
        ("comparison", both, 1, None, ONE, 0, False, None),
        ("comparison", both, 0, None, ONE, 1, False, None),
        ("comparison", f"{ONE}/0 {OTHER}/0", 0, None, OTHER, 0, True, None),
        ("correction", f"{ONE}/0", 0, None, None, None, False, "one!"),
    ]
    assert (
        votes_in(database_engine)[0].comment,
        votes_in(database_engine)[0].tags,
        votes_in(database_engine)[0].user,
    ) == ("why", ["kind", "short"], "ada")
    assert len({row.prompt_digest for row in votes_in(database_engine)}) == 1


async def test_preferring_the_other_answer_replaces_the_first_preference(store: Store) -> None:
    first, _ = await store.feedback.put("shop", _prefers(0, 1, feedback_id="first"))
    second, _ = await store.feedback.put("shop", _prefers(1, 0))
    repeated, _ = await store.feedback.put("shop", _prefers(0, 1, feedback_id="first"))
    assert (first.effective, second.effective, repeated.effective) == (True, True, False)


async def test_kinds_do_not_overwrite_each_other(store: Store) -> None:
    rating = _vote(Rating.DOWN, feedback_id="rating")
    await store.feedback.put("shop", rating)
    await store.feedback.put("shop", _vote(rating=None, correction="better"))
    await store.feedback.put("shop", _prefers(1, 0))
    assert (await store.feedback.put("shop", rating))[0].effective


async def test_answers_to_different_prompts_cannot_be_compared(store: Store, database_engine: Engine) -> None:
    with pytest.raises(BadRequest) as refused:
        await store.feedback.put("shop", _vote(rating=None, preferred_over={"completion_id": TALK}))
    assert (refused.value.code, refused.value.param) == ("different_prompts", "preferred_over")
    assert votes_in(database_engine) == []


@pytest.mark.parametrize("rival", [{"completion_id": "chatcmpl-0"}, {"choice_index": 2}, {"completion_id": "theirs"}])
async def test_an_answer_is_preferred_only_to_one_that_the_app_was_given(
    store: Store, make_completion: Callable[..., Completion], rival: dict[str, Any]
) -> None:
    await store.completions.record(make_completion("theirs", app="other"))
    with pytest.raises(NotFound) as refused:
        await store.feedback.put("shop", _vote(rating=None, preferred_over=rival))
    assert (refused.value.code, refused.value.param) == ("completion_not_found", "preferred_over")


async def test_an_answer_whose_text_was_not_kept_can_be_voted_on(
    store: Store, make_completion: Callable[..., Completion]
) -> None:
    await store.completions.record(make_completion("private", "one", "two", store=False))
    for vote in (_vote(), _prefers(0, 1), _vote(rating=None, correction="better")):
        receipt, created = await store.feedback.put("shop", vote.model_copy(update={"completion_id": "private"}))
        assert receipt.effective and created


# --- what is to be matched anew -----------------------------------------------------------------------


async def test_every_change_leaves_its_prompt_to_be_matched_and_nothing_else_does(
    store: Store, stale: Callable[[], int]
) -> None:
    vote = _vote(feedback_id="mine")
    await store.feedback.put("shop", vote)
    assert stale() == 1
    await store.feedback.put("shop", vote)
    with pytest.raises(Conflict):
        await store.feedback.put("shop", _vote(Rating.DOWN, feedback_id="mine"))
    with pytest.raises(NotFound):
        await store.feedback.put("shop", _vote(choice_index=9))
    assert stale() == 0
    await store.feedback.retract("shop", "mine")
    assert stale() == 1
    await store.feedback.retract("shop", "mine")
    assert stale() == 0


# --- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "covered"),
    [
        (Grant("shop", ONE, "ada"), True),
        (Grant("shop", OTHER, "ada"), False),
        (Grant("shop", ONE, "bob"), False),
        (Grant("shop", ONE, None), False),
    ],
    ids=str,
)
async def test_a_token_takes_back_only_what_its_user_said_of_its_completion(
    store: Store, database_engine: Engine, grant: Grant, covered: bool
) -> None:
    await store.feedback.put("shop", _vote(feedback_id="mine"))
    if covered:
        await store.feedback.retract("shop", "mine", grant)
    else:
        with pytest.raises(NotFound):
            await store.feedback.retract("shop", "mine", grant)
    assert (effective_in(database_engine) == []) is covered


async def test_a_token_of_nobody_takes_back_the_votes_of_nobody(store: Store, database_engine: Engine) -> None:
    await store.feedback.put("shop", _vote(user=None, feedback_id="mine"))
    await store.feedback.retract("shop", "mine", Grant("shop", ONE, None))
    assert effective_in(database_engine) == []


async def test_the_redaction_hook_sees_every_text_before_it_is_written(
    store: Store, database_url: str, database_engine: Engine
) -> None:
    class Shouts:
        def text(self, text: str) -> str:
            if text == "unspeakable":
                raise RedactionFailed("no")
            return text.upper()

    redacting = Store(database_url, Shouts())
    said = _vote(rating=None, correction="better", comment="why", feedback_id="mine")
    first, again = await redacting.feedback.put("shop", said), await redacting.feedback.put("shop", said)
    assert (first[0], first[1], again[1]) == (again[0], True, False)
    with pytest.raises(RedactionFailed):
        await redacting.feedback.put("shop", _vote(comment="unspeakable"))
    await redacting.close()
    assert [(row.correction, row.comment) for row in votes_in(database_engine)] == [("BETTER", "WHY")]
