"""Who answers a request, what is recorded of it, and when it lets go of its adapter."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.contracts import BASE, AdapterFiles, Caller, Route
from serving.errors import RequestRefused, UnknownModel
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import FINGERPRINTS, write_adapter
from tests.fakes import EOS, EngineDead, FakeEngine, FakeJournal, authors, chunk, text_of, until

SHOP = Caller(app="shop")


def body(model: str = "policy", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]} | fields


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFiles]:
    folder = tmp_path_factory.mktemp("published")
    return [write_adapter(folder / str(ordinal), ordinal) for ordinal in (1, 2, 3)]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def journal(published: list[AdapterFiles]) -> FakeJournal:
    """The third adapter answers, the second is the previous one, the first is published and not in the route."""
    first, second, third = published
    route = Route(generation=3, stable=third.name, previous=second.name)
    return FakeJournal(first, second, third, route=route)


@pytest.fixture
async def replica(engine: FakeEngine, journal: FakeJournal, tmp_path: Path) -> Replica:
    replica = Replica("one", engine, journal, tmp_path, ServingSettings())
    await replica.start()
    return replica


def pinned(replica: Replica) -> dict[str, int]:
    return replica.status().in_flight


# --- who answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "place"),
    [("policy", "stable"), ("policy@stable", "stable"), ("policy@previous", "previous"), ("base", None)],
)
async def test_an_alias_is_answered_by_the_adapter_behind_it(
    replica: Replica, journal: FakeJournal, model: str, place: str | None
) -> None:
    expected = getattr(journal.current, place) if place else BASE
    answer = await replica.chat(body(model), SHOP)
    assert answer.body is not None
    assert answer.adapter == answer.body["model"] == expected
    assert authors(answer.body["choices"][0]["message"]["content"]) == {expected}


async def test_the_candidate_answers_when_there_is_one(
    replica: Replica, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    with pytest.raises(UnknownModel):
        await replica.chat(body("policy@candidate"), SHOP)
    await replica.flip(journal.current.model_copy(update={"generation": 4, "candidate": published[0].name}))
    assert (await replica.chat(body("policy@candidate"), SHOP)).adapter == published[0].name


async def test_a_full_name_is_answered_by_that_adapter_loaded_or_not(
    replica: Replica, engine: FakeEngine, published: list[AdapterFiles]
) -> None:
    for files in published:
        assert (await replica.chat(body(files.name), SHOP)).adapter == files.name
    assert engine.history.count(("load", published[0].name)) == 1


async def test_the_route_decides_who_answers_a_user_and_always_the_same(
    replica: Replica, journal: FakeJournal, published: list[AdapterFiles]
) -> None:
    first, second, third = (files.name for files in published)
    split = Route(
        generation=4,
        stable=third,
        previous=second,
        candidate=first,
        candidate_share=0.5,
        baseline=BASE,
        baseline_share=0.25,
    )
    await replica.flip(split)
    users = [f"user {number}" for number in range(60)]
    answered_by = {user: (await replica.chat(body(user=user), SHOP)).adapter for user in users}
    assert set(answered_by.values()) == {third, first, BASE}
    for user, adapter in answered_by.items():
        assert (await replica.chat(body(user=user), SHOP)).adapter == adapter
        assert (await replica.chat(body("policy@stable", user=user), SHOP)).adapter == third
    assert {(record.adapter, record.model) for record in journal.records if record.user == users[0]} == {
        (answered_by[users[0]], "policy"),
        (third, "policy@stable"),
    }


@pytest.mark.parametrize(
    "model", ["gpt-5", "Policy", "policy@", "policy@latest", " base", "policy-0001-00000000", "../policy", "x" * 9999]
)
async def test_an_unknown_model_is_refused_and_never_answered_by_the_base(
    replica: Replica, journal: FakeJournal, model: str
) -> None:
    with pytest.raises(UnknownModel) as refused:
        await replica.chat(body(model), SHOP)
    assert len(str(refused.value)) < 400
    assert journal.records == []
    assert pinned(replica) == {}


async def test_before_the_first_round_the_base_answers(tmp_path: Path, engine: FakeEngine) -> None:
    replica = Replica("one", engine, FakeJournal(), tmp_path, ServingSettings())
    await replica.start()
    assert (await replica.chat(body(), SHOP)).adapter == BASE
    with pytest.raises(UnknownModel):
        await replica.chat(body("policy@previous"), SHOP)
    assert replica.models() == ["policy", "policy@stable", "base"]


async def test_models_lists_what_can_be_asked_for(replica: Replica, published: list[AdapterFiles]) -> None:
    loaded = sorted(files.name for files in published[1:])
    assert replica.models() == ["policy", "policy@stable", "policy@previous", "base", *loaded]
    for model in replica.models():
        await replica.chat(body(model), SHOP)


async def test_every_answer_has_an_id_of_its_own_in_every_chunk(replica: Replica) -> None:
    answers = [await replica.chat(body(stream=True, seed=1), SHOP) for _ in range(2)]
    ids = []
    for answer in answers:
        assert answer.stream is not None
        chunks = [chunk(event) async for event in answer.stream]
        ids.append({part["id"] for part in chunks if part})
    assert ids == [{answers[0].completion_id}, {answers[1].completion_id}]
    assert answers[0].completion_id != answers[1].completion_id


# --- what is recorded ---------------------------------------------------------------------------------


async def test_the_record_says_what_was_asked_and_what_was_sampled(replica: Replica, journal: FakeJournal) -> None:
    asked = body(user="ada", metadata={"page": "7"}, temperature=0.5, n=2, seed=9)
    answer = await replica.chat(asked, SHOP)
    assert answer.body is not None
    [record] = journal.records
    assert (record.id, record.app, record.user, record.metadata) == (answer.completion_id, "shop", "ada", {"page": "7"})
    assert (record.adapter, record.model) == (journal.current.stable, "policy")
    assert (record.messages, record.store) == (asked["messages"], True)
    assert record.sampling == {"temperature": 0.5, "n": 2, "seed": 9}
    assert record.tokenizer_fingerprint == FINGERPRINTS.tokenizer
    assert record.prompt_token_ids
    said = [choice["message"]["content"] for choice in answer.body["choices"]]
    assert [choice.text for choice in record.choices] == said
    assert [choice.index for choice in record.choices] == [0, 1]


async def test_the_end_token_is_recorded_only_where_the_engine_stopped_on_it(
    replica: Replica, journal: FakeJournal
) -> None:
    await replica.chat(body(), SHOP)
    await replica.chat(body(max_tokens=2), SHOP)
    whole, cut = (record.choices[0] for record in journal.records)
    assert (whole.finish_reason, whole.token_ids[-1]) == ("stop", EOS)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)
    assert EOS not in cut.token_ids


@pytest.mark.parametrize(("asked", "kept"), [({}, True), ({"store": True}, True), ({"store": None}, True), ({"store": False}, False)])  # fmt: skip
async def test_the_record_carries_the_wish_not_to_be_stored(
    replica: Replica, journal: FakeJournal, asked: dict[str, Any], kept: bool
) -> None:
    await replica.chat(body(**asked), SHOP)
    assert journal.records[0].store is kept


async def test_a_stream_is_recorded_before_its_last_chunk(replica: Replica, journal: FakeJournal) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    assert answer.stream is not None
    recorded = [(bool(journal.records), event) async for event in answer.stream]
    contents = [was for was, event in recorded if chunk(event)]
    assert contents == [False, False, False, True]
    assert len(journal.records) == 1


async def test_where_no_answer_goes_out_without_its_record_none_is_complete(
    replica: Replica, journal: FakeJournal
) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    assert answer.stream is not None
    journal.away = journal.refuses = True
    *_, last = [event async for event in answer.stream]
    assert chunk(last)["error"]["code"] == "engine_failed"
    assert pinned(replica) == {}


async def test_where_no_answer_goes_out_without_its_record_none_is_begun(
    replica: Replica, journal: FakeJournal, engine: FakeEngine
) -> None:
    journal.away = journal.refuses = True
    engine.dead = True  # so that asking it at all would show
    for stream in (False, True):
        with pytest.raises(ConnectionError):
            await replica.chat(body(stream=stream), SHOP)


async def test_an_answer_without_its_record_says_that_it_cannot_be_rated(
    replica: Replica, journal: FakeJournal
) -> None:
    rated = await replica.chat(body(), SHOP)
    assert rated.body is not None and rated.rateable and "rateable" not in rated.body
    journal.away = True
    answer = await replica.chat(body(), SHOP)
    assert answer.body is not None
    assert answer.body == {**answer.body, "rateable": False}
    assert not answer.rateable
    assert replica.status().unlogged == 1


async def test_a_stream_says_in_its_last_chunk_that_it_cannot_be_rated(replica: Replica, journal: FakeJournal) -> None:
    rated, unrated = [await replica.chat(body(stream=True), SHOP) for _ in range(2)]
    assert rated.stream is not None and unrated.stream is not None
    whole = [event async for event in rated.stream]
    journal.away = True
    *chunks, done = [event async for event in unrated.stream]
    assert done == "data: [DONE]\n\n"
    assert ["rateable" in chunk(event) for event in whole] == [False] * len(whole)
    assert [chunk(event).get("rateable", True) for event in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [text_of(event) for event in (*chunks, done)] == [text_of(event) for event in whole]


async def test_a_refused_body_reaches_neither_engine_nor_record(replica: Replica, journal: FakeJournal) -> None:
    with pytest.raises(RequestRefused):
        await replica.chat(body(tools=[]), SHOP)
    with pytest.raises(RequestRefused):
        await replica.chat("hello", SHOP)
    assert journal.records == []


# --- pins ---------------------------------------------------------------------------------------------


async def test_a_request_is_pinned_from_its_start_to_its_end(
    replica: Replica, engine: FakeEngine, journal: FakeJournal
) -> None:
    stable = journal.current.stable
    engine.flowing.clear()
    whole = asyncio.create_task(replica.chat(body(), SHOP))
    stream = await replica.chat(body(stream=True), SHOP)
    assert stream.stream is not None
    await anext(stream.stream)
    await until(lambda: pinned(replica) == {stable: 2})
    engine.flowing.set()
    await whole
    assert pinned(replica) == {stable: 1}
    async for _ in stream.stream:
        pass
    assert pinned(replica) == {}


async def test_a_stream_that_is_closed_early_gives_its_pin_back(replica: Replica) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    stream: Any = answer.stream
    await anext(stream)
    await stream.aclose()
    assert pinned(replica) == {}
    await stream.aclose()
    assert pinned(replica) == {}


async def test_a_stream_that_nobody_ever_read_gives_its_pin_back(replica: Replica) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    assert pinned(replica) == {answer.adapter: 1}
    del answer
    gc.collect()
    assert pinned(replica) == {}


async def test_a_stream_that_is_dropped_half_way_gives_its_pin_back(replica: Replica) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    assert answer.stream is not None
    await anext(answer.stream)
    del answer
    gc.collect()
    assert pinned(replica) == {}


async def test_a_stream_whose_reader_is_cancelled_gives_its_pin_back(replica: Replica, engine: FakeEngine) -> None:
    engine.flowing.clear()
    answer = await replica.chat(body(stream=True), SHOP)
    stream: Any = answer.stream
    await anext(stream)
    waiting = asyncio.create_task(stream.__anext__())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pinned(replica) == {}


async def test_a_whole_answer_whose_caller_is_cancelled_gives_its_pin_back(
    replica: Replica, engine: FakeEngine
) -> None:
    engine.flowing.clear()
    waiting = asyncio.create_task(replica.chat(body(), SHOP))
    await until(lambda: bool(pinned(replica)))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not pinned(replica))


def _too_long(engine: FakeEngine) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": "x" * 5000}])


def _dead(engine: FakeEngine) -> dict[str, Any]:
    engine.dead = True
    return body()


@pytest.mark.parametrize(("prepare", "error"), [(_too_long, RequestRefused), (_dead, EngineDead)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_engine_refuses_gives_its_pin_back(
    replica: Replica, engine: FakeEngine, prepare: Callable[..., dict[str, Any]], error: type[Exception], stream: bool
) -> None:
    asked = prepare(engine)
    with pytest.raises(error):
        await replica.chat(asked | {"stream": stream}, SHOP)
    assert pinned(replica) == {}


async def test_a_stream_that_breaks_gives_its_pin_back(replica: Replica, engine: FakeEngine) -> None:
    answer = await replica.chat(body(stream=True), SHOP)
    assert answer.stream is not None
    await anext(answer.stream)
    engine.dead = True
    *_, last = [event async for event in answer.stream]
    assert chunk(last)["error"]["code"] == "engine_failed"
    assert pinned(replica) == {}


async def test_a_dead_engine_is_no_healthy_replica(replica: Replica, engine: FakeEngine) -> None:
    await replica.check_health()
    engine.dead = True
    with pytest.raises(EngineDead):
        await replica.check_health()
