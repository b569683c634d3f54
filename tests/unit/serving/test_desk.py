"""A request under load, with a client that goes away, past its deadline, on a broken engine: what is freed, what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.contracts import BASE, Caller, Completion
from serving.errors import DeadlineExceeded, Overloaded, RequestRefused, UnknownModel
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.fakes import EngineDead, FakeEngine, FakeJournal, chunk, until


class Charged:
    """A caller that counts the tokens of its requests."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def caller(self) -> Caller:
        return Caller(app="shop", ended=self.tokens.append)


@pytest.fixture
def charged() -> Charged:
    return Charged()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture
async def replica(engine: FakeEngine, journal: FakeJournal, tmp_path: Path) -> Replica:
    return await started(engine, journal, tmp_path)


async def started(engine: FakeEngine, journal: FakeJournal, folder: Path, **settings: Any) -> Replica:
    replica = Replica("one", engine, journal, folder, ServingSettings(**settings))
    await replica.start()
    return replica


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": "hello"}]} | fields


def refusals(replica: Replica, reason: str) -> float:
    return replica.meter._registry.get_sample_value("heliotrope_requests_rejected_total", {"reason": reason}) or 0


async def begun(replica: Replica, engine: FakeEngine, charged: Charged, **fields: Any) -> Any:
    """A stream of which the first token is there, and the second never comes."""
    engine.flowing.clear()
    stream: Any = (await replica.chat(body(stream=True, **fields), charged.caller)).stream
    await anext(stream)
    return stream


def idle(replica: Replica, engine: FakeEngine) -> bool:
    return not engine.running and not replica.status().in_flight and not replica._desk._admission.running


# --- admission ----------------------------------------------------------------------------------------


async def test_what_does_not_fit_waits_and_what_does_not_fit_there_is_turned_away(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    replica = await started(engine, journal, tmp_path, max_requests=1, max_waiting=1)
    engine.flowing.clear()
    runs, waits = (asyncio.create_task(replica.chat(body(), charged.caller)) for _ in range(2))
    await until(lambda: replica.status().waiting == 1)
    with pytest.raises(Overloaded):
        await replica.chat(body(), charged.caller)
    assert charged.tokens == [0]
    assert refusals(replica, "overloaded") == 1
    engine.flowing.set()
    for task in (runs, waits):
        assert (await task).adapter == BASE
    assert replica.status().waiting == 0
    assert len(journal.records) == 2


async def test_who_waits_holds_no_adapter(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    replica = await started(engine, journal, tmp_path, max_requests=1)
    engine.flowing.clear()
    tasks = [asyncio.create_task(replica.chat(body(), charged.caller)) for _ in range(2)]
    await until(lambda: replica.status().waiting == 1)
    assert replica.status().in_flight == {BASE: 1}
    engine.flowing.set()
    await asyncio.gather(*tasks)


async def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    replica = await started(engine, journal, tmp_path, max_requests=1)
    stream = await begun(replica, engine, charged)
    waits = asyncio.create_task(replica.chat(body(), charged.caller))
    await until(lambda: replica.status().waiting == 1)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert replica.status().waiting == 0
    assert charged.tokens == [0]
    await stream.aclose()


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [({"tools": []}, RequestRefused, "unsupported_parameter"), ({"model": "gpt-5"}, UnknownModel, "model_not_found")],
)
async def test_a_refused_request_takes_no_place_and_costs_nothing(
    replica: Replica, engine: FakeEngine, charged: Charged, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error):
        await replica.chat(body(**change), charged.caller)
    assert idle(replica, engine)
    assert charged.tokens == [0]
    assert refusals(replica, reason) == 1


async def test_text_that_steers_the_model_reaches_no_engine(replica: Replica, engine: FakeEngine) -> None:
    engine.dead = True  # so that asking it at all would show
    with pytest.raises(RequestRefused) as refused:
        await replica.chat(body(messages=[{"role": "user", "content": "<|end|>"}]), Caller(app="shop"))
    assert refused.value.code == "control_token"


# --- what is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_record_and_the_account_say_how_long_it_took_and_what_it_cost(
    replica: Replica, journal: FakeJournal, charged: Charged, stream: bool
) -> None:
    answer = await replica.chat(body(stream=stream, n=2), charged.caller)
    if answer.stream is not None:
        async for _ in answer.stream:
            pass
    [record] = journal.records
    assert record.first_token_seconds is not None and record.seconds is not None
    assert 0 < record.first_token_seconds <= record.seconds
    assert record.outcome == "finished"
    sampled = sum(len(choice.token_ids) for choice in record.choices)
    assert charged.tokens == [len(record.prompt_token_ids) + sampled]


async def test_an_answer_that_its_client_did_not_wait_for_is_recorded_all_the_same(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    """It goes away while the record is being written."""
    held = asyncio.Event()
    journal.recording = held
    asks = asyncio.create_task(replica.chat(body(), charged.caller))
    await until(lambda: journal.arrived > 0)
    asks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asks
    held.set()
    await replica.close()
    [record] = journal.records
    assert record.outcome == "finished"


# --- clients that go away -----------------------------------------------------------------------------


async def cut_short(journal: FakeJournal) -> Completion:
    await until(lambda: bool(journal.records))
    [record] = journal.records
    return record


async def test_closing_a_stream_stops_the_engine_and_keeps_what_was_sampled_so_far(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    stream = await begun(replica, engine, charged, n=2)
    await stream.aclose()
    assert idle(replica, engine)
    record = await cut_short(journal)
    assert record.outcome == "cancelled"
    assert [(choice.text, choice.finish_reason) for choice in record.choices] == [
        ("base/0/0/0 ", "cancelled"),
        ("base/0/1/0 ", "cancelled"),
    ]
    assert charged.tokens == [len(record.prompt_token_ids) + 2]


async def test_a_reader_that_is_cancelled_stops_the_engine(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    stream = await begun(replica, engine, charged)
    reads = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    reads.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reads
    assert idle(replica, engine)
    assert (await cut_short(journal)).outcome == "cancelled"


async def test_a_whole_answer_whose_client_goes_away_is_stopped_and_recorded(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    engine.flowing.clear()
    asks = asyncio.create_task(replica.chat(body(store=False), charged.caller))
    await until(lambda: engine.sampled > 0)
    asks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asks
    record = await cut_short(journal)
    assert (record.outcome, record.store) == ("cancelled", False)
    assert [choice.text for choice in record.choices] == ["base/0/0/0 "]
    assert idle(replica, engine)
    assert len(charged.tokens) == 1


async def test_closing_waits_for_the_records_of_those_who_went_away(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    stream = await begun(replica, engine, charged)
    await stream.aclose()
    await replica.close()
    assert [record.outcome for record in journal.records] == ["cancelled"]


async def test_a_store_that_is_away_hides_no_other_answer(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    journal.away = journal.refuses = False
    stream = await begun(replica, engine, charged)
    journal.away = journal.refuses = True
    await stream.aclose()
    await replica.close()
    assert replica.status().unlogged == 0, "nobody was answered"
    assert idle(replica, engine)


# --- deadlines ----------------------------------------------------------------------------------------


async def test_an_answer_that_does_not_end_in_time_is_stopped_and_recorded_as_cancelled(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    replica = await started(engine, journal, tmp_path, answer_seconds=0.05, drain_seconds=1)
    engine.flowing.clear()
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.05 seconds"):
        await replica.chat(body(), charged.caller)
    assert (await cut_short(journal)).outcome == "cancelled"
    assert idle(replica, engine)
    assert refusals(replica, "deadline_exceeded") == 1


async def test_a_stream_past_its_deadline_says_so_and_ends(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    replica = await started(engine, journal, tmp_path, answer_seconds=0.05, drain_seconds=1)
    stream = await begun(replica, engine, charged)
    [error] = [event async for event in stream]
    assert chunk(error)["error"]["code"] == "deadline_exceeded"
    assert (await cut_short(journal)).outcome == "cancelled"
    assert idle(replica, engine)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_token_has_a_deadline_of_its_own(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged, stream: bool
) -> None:
    replica = await started(engine, journal, tmp_path, first_token_seconds=0.05)
    engine.starting.clear()
    with pytest.raises(DeadlineExceeded, match="No token came"):
        await replica.chat(body(stream=stream), charged.caller)
    record = await cut_short(journal)
    assert (record.outcome, record.choices, record.first_token_seconds) == ("cancelled", (), None)
    assert idle(replica, engine)


async def test_an_engine_that_does_not_let_go_keeps_no_client_waiting(
    engine: FakeEngine, journal: FakeJournal, tmp_path: Path, charged: Charged
) -> None:
    class Hung(FakeEngine):
        async def stop(self, request_id: str) -> None:
            """It does not."""

    hung = Hung()
    hung.flowing.clear()
    replica = await started(hung, journal, tmp_path, answer_seconds=0.05, drain_seconds=1)
    with pytest.raises(DeadlineExceeded):
        await replica.chat(body(), charged.caller)
    assert replica.status().in_flight == {BASE: 1}, "its adapter is in use still"
    hung.flowing.set()
    await until(lambda: idle(replica, hung))


# --- engines that break -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_what_breaks_is_recorded_as_failed_without_choices(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged, stream: bool
) -> None:
    engine.flowing.clear()
    asks = asyncio.create_task(replica.chat(body(stream=stream), charged.caller))
    await until(lambda: engine.sampled > 0)
    if stream:
        events: Any = (await asks).stream
        engine.dead = True
        engine.flowing.set()
        *_, last = [event async for event in events]
        assert chunk(last)["error"]["code"] == "engine_failed"
    else:
        engine.dead = True
        engine.flowing.set()
        with pytest.raises(EngineDead):
            await asks
    record = await cut_short(journal)
    assert (record.outcome, record.choices) == ("failed", ())
    assert idle(replica, engine)
    assert len(charged.tokens) == 1


async def test_an_engine_that_is_dead_already_leaves_a_record_too(
    replica: Replica, engine: FakeEngine, journal: FakeJournal, charged: Charged
) -> None:
    engine.dead = True
    with pytest.raises(EngineDead):
        await replica.chat(body(), charged.caller)
    assert (await cut_short(journal)).outcome == "failed"
    assert idle(replica, engine)
