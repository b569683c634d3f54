"""`/v1/feedback` over HTTP, with an app's key: votes of every form, and bodies that nobody should send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.store.store import Store
from serving.contracts import Completion
from tests.small_service import MAX_BODY_BYTES, Refusal, client, refusal
from tests.voting import FEEDBACK, JSON, TOKENS, feedback_app, with_key


@pytest.fixture(autouse=True)
async def answered(store: Store, make_completion: Callable[..., Completion]) -> None:
    """Two answers of the app `shop` to one prompt, one to another, and one of the app `rival`."""
    await store.completions.record(make_completion("c1", "one", "two"))
    await store.completions.record(make_completion("c2", "three"))
    await store.completions.record(make_completion("c3", "four", prompt_token_ids=(9,)))
    await store.completions.record(make_completion("theirs", app="rival"))


@pytest.fixture
async def app(store: Store) -> httpx.AsyncClient:
    """The application `shop` with its key."""
    return await with_key(store)


# --- with a key ---------------------------------------------------------------------------------------


async def test_a_vote_is_answered_with_a_receipt(app: httpx.AsyncClient) -> None:
    vote = {"completion_id": "c1", "choice_index": 1, "rating": "down"}
    rest = {"user": "ada", "comment": "too long", "tags": ["verbose"]}
    answer = await app.post(FEEDBACK, json=vote | rest)
    assert answer.status_code == 201
    assert answer.json()["feedback_id"]
    assert (answer.json()["adapter"], answer.json()["effective"]) == ("base", True)


@pytest.mark.parametrize(
    "said",
    [
        {"rating": "thumbs_up"},
        {"rating": -1},
        {"rating": True},
        {"preferred_over": {"choice_index": 1}},
        {"preferred_over": {"completion_id": "c2", "tie": True}},
        {"correction": "better"},
    ],
    ids=str,
)
async def test_every_form_of_feedback_is_taken(app: httpx.AsyncClient, said: dict[str, Any]) -> None:
    answer = await app.post(FEEDBACK, json={"completion_id": "c1"} | said)
    assert (answer.status_code, answer.json()["effective"]) == (201, True)


async def test_a_repeated_vote_is_one_vote_and_another_body_under_its_id_a_conflict(app: httpx.AsyncClient) -> None:
    vote = {"completion_id": "c1", "rating": "up", "feedback_id": "f1"}
    first, again = await app.post(FEEDBACK, json=vote), await app.post(FEEDBACK, json=vote)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == {"feedback_id": "f1", "adapter": "base", "effective": True}
    other = await app.post(FEEDBACK, json=vote | {"rating": "down"})
    assert refusal(other) == Refusal(409, "idempotency_conflict", "feedback_id")
    assert other.headers["x-should-retry"] == "false"


async def test_a_changed_mind_counts_and_the_earlier_vote_no_longer_does(app: httpx.AsyncClient) -> None:
    vote = {"completion_id": "c1", "user": "ada"}
    up = vote | {"rating": "up", "feedback_id": "f1"}
    await app.post(FEEDBACK, json=up)
    assert (await app.post(FEEDBACK, json=vote | {"rating": "down"})).json()["effective"] is True
    assert (await app.post(FEEDBACK, json=up)).json()["effective"] is False


@pytest.mark.parametrize("feedback_id", ["f1", "a/b", "tokens", "é?#"])
async def test_a_vote_can_be_taken_back_by_the_app_that_sent_it(
    store: Store, app: httpx.AsyncClient, feedback_id: str
) -> None:
    vote = {"completion_id": "c1", "rating": "up", "feedback_id": feedback_id}
    await app.post(FEEDBACK, json=vote)
    path = f"{FEEDBACK}/{quote(feedback_id, safe='')}"
    rival = await with_key(store, "rival")
    assert refusal(await rival.delete(path)) == Refusal(404, "feedback_not_found", "feedback_id")
    assert (await app.post(FEEDBACK, json=vote)).json()["effective"] is True
    for _ in range(2):
        answer = await app.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
    assert (await app.post(FEEDBACK, json=vote)).json()["effective"] is False


@pytest.mark.parametrize("vote", [{"completion_id": "c0"}, {"completion_id": "theirs"}, {"choice_index": 2}], ids=str)
async def test_a_vote_on_an_unknown_or_foreign_completion_is_not_found(
    app: httpx.AsyncClient, vote: dict[str, Any]
) -> None:
    answer = await app.post(FEEDBACK, json={"completion_id": "c1", "rating": "up"} | vote)
    assert refusal(answer) == Refusal(404, "completion_not_found", "completion_id")


async def test_a_comparison_of_answers_to_different_prompts_is_refused(app: httpx.AsyncClient) -> None:
    answer = await app.post(FEEDBACK, json={"completion_id": "c1", "preferred_over": {"completion_id": "c3"}})
    assert refusal(answer) == Refusal(400, "different_prompts", "preferred_over")


# --- bodies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"raiting": "up"}, "raiting", "unknown_parameter"),
        ({"rating": "meh"}, "rating", "invalid_value"),
        ({"rating": float("nan")}, None, "invalid_json"),
        ({"rating": 10**4000}, None, "invalid_json"),
        ({"rating": [[["up"]]]}, "rating", "invalid_value"),
        ({"choice_index": -1}, "choice_index", "invalid_value"),
        ({"choice_index": 0.5}, "choice_index", "invalid_value"),
        ({"choice_index": 2**63}, None, "invalid_json"),
        ({"choice_index": float("inf")}, None, "invalid_json"),
        ({"completion_id": ""}, "completion_id", "invalid_value"),
        ({"completion_id": "c\0"}, "completion_id", "invalid_value"),
        ({"user": "u" * 257}, "user", "invalid_value"),
        ({"user": "\ud800"}, "user", "invalid_value"),
        ({"feedback_id": "\udfff"}, "feedback_id", "invalid_value"),
        ({"comment": "\ud800"}, "comment", "invalid_value"),
        ({"tags": ["\ud800"]}, "tags.0", "invalid_value"),
        ({"correction": "\ud800"}, "correction", "invalid_value"),
        ({"rating": "\ud800"}, "rating", "invalid_value"),
        ({"\ud800": 1}, None, "invalid_value"),
        ({"comment": "c" * 16_385}, "comment", "invalid_value"),
        ({"tags": ["t"] * 33}, "tags", "invalid_value"),
        ({"tags": ["fine", ""]}, "tags.1", "invalid_value"),
        ({"tags": "t"}, "tags", "invalid_value"),
        ({"preferred_over": "c2"}, "preferred_over", "invalid_value"),
        ({"preferred_over": {"completion_id": "\0"}}, "preferred_over.completion_id", "invalid_value"),
        ({"preferred_over": {"choice_index": "one"}}, "preferred_over.choice_index", "invalid_value"),
        ({"preferred_over": {"rank": 1}}, "preferred_over.rank", "unknown_parameter"),
        ({"correction": " \n"}, "correction", "invalid_value"),
        ({"correction": "\0"}, "correction", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_vote_is_refused_by_field(
    app: httpx.AsyncClient, change: dict[str, Any], param: str | None, code: str
) -> None:
    vote = {"completion_id": "c1", "rating": "up"} | change
    answer = await app.post(FEEDBACK, content=json.dumps(vote), headers=JSON)
    assert refusal(answer) == Refusal(400, code, param)


async def test_a_vote_that_lacks_its_completion_says_so(app: httpx.AsyncClient) -> None:
    answer = await app.post(FEEDBACK, json={"rating": "up"})
    assert refusal(answer) == Refusal(400, "missing_parameter", "completion_id")


@pytest.mark.parametrize("said", [{}, {"rating": None}, {"rating": "up", "correction": "better"}], ids=str)
async def test_a_vote_says_exactly_one_thing(app: httpx.AsyncClient, said: dict[str, Any]) -> None:
    answer = await app.post(FEEDBACK, json={"completion_id": "c1"} | said)
    assert refusal(answer) == Refusal(400, "invalid_value")
    assert "exactly one of rating, preferred_over and correction" in answer.json()["error"]["message"]


BROKEN = {
    b"": "missing_parameter",
    b"[]": "invalid_json",
    b"{": "invalid_json",
    b"7": "invalid_json",
    b"null": "invalid_json",
    b'{"user": "\xff"}': "invalid_json",
    b'{"rating": ' + b"1" * 5000 + b"}": "invalid_json",
    b"[" * 40_000: "invalid_json",
}


@pytest.mark.parametrize("path", [FEEDBACK, TOKENS])
@pytest.mark.parametrize(("body", "code"), BROKEN.items(), ids=lambda value: str(value)[:20])
async def test_a_body_that_is_no_json_object_is_refused(
    app: httpx.AsyncClient, path: str, body: bytes, code: str
) -> None:
    assert refusal(await app.post(path, content=body, headers=JSON)) == Refusal(400, code)


async def test_a_body_that_is_not_sent_as_json_says_so(app: httpx.AsyncClient) -> None:
    body = json.dumps({"completion_id": "c1", "rating": "up"})
    answer = await app.post(FEEDBACK, content=body, headers={"content-type": "text/plain"})
    assert refusal(answer) == Refusal(400, "invalid_json")
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [FEEDBACK, TOKENS])
@pytest.mark.parametrize("body", [b"{", b"", b'{"completion_id": 7}', b"x" * MAX_BODY_BYTES])
async def test_a_stranger_hears_nothing_of_the_body(store: Store, path: str, body: bytes) -> None:
    answer = await client(feedback_app(store), None).post(path, content=body, headers=JSON)
    assert refusal(answer) == Refusal(401, "invalid_api_key")


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["up", "\ud800", "\0", 10**4000, -(2**63), "x" * 300, "c1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
rivals = st.fixed_dictionaries({}, optional={"completion_id": junk, "choice_index": junk, "tie": junk})
said = st.fixed_dictionaries(
    {"completion_id": st.just("c1") | junk},
    optional={
        "choice_index": st.integers(-1, 128) | junk,
        "rating": st.just("up") | junk,
        "preferred_over": rivals | junk,
        "correction": junk,
        "user": junk,
        "comment": junk,
        "tags": st.lists(junk, max_size=3),
        "feedback_id": junk,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sent=said)
async def test_whatever_is_sent_is_answered_with_a_receipt_or_a_reason(
    app: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    answer = await app.post(FEEDBACK, content=json.dumps(sent), headers=JSON)
    if answer.status_code in (200, 201):
        assert answer.json()["adapter"] == "base"
    else:
        assert refusal(answer).status in (400, 404, 409)
