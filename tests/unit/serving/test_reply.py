"""How a stream tells that its answer cannot be rated, and how it ends when it breaks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from serving.admission import Admission
from serving.errors import DeadlineExceeded, EngineFailed, RequestRefused
from serving.meter import Meter
from serving.pins import Pin
from serving.reply import Reply
from serving.turn import Deadlines, Turn
from tests.fakes import chunk, until

DONE = "data: [DONE]\n\n"
WORD = 'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'
USAGE = 'data: {"id": "c", "choices": [], "usage": {"total_tokens": 3}}\n\n'
BROKE = 'data: {"error": {"message": "the engine is gone", "code": 500}}\n\n'
REFUSED = 'data: {"error": {"message": "no such grammar (parameter=x, value=y)", "param": "x", "code": 400}}\n\n'


@pytest.fixture
def in_flight() -> Counter[str]:
    return Counter()


@pytest.fixture
async def turn(in_flight: Counter[str]) -> Turn:
    return await a_turn(in_flight)


async def a_turn(in_flight: Counter[str], *, first: float = 3600.0, answer: float = 3600.0, ago: float = 0.0) -> Turn:
    """`ago`: how long it has been here already."""
    return Turn(
        "c",
        began=asyncio.get_running_loop().time() - ago,
        place=await Admission(1, max_waiting=0, max_waiting_seconds=0).enter(1),
        pin=Pin(in_flight, "base"),
        deadlines=Deadlines(first, answer),
        meter=Meter("one"),
        ended=lambda tokens: None,
    )


async def stream(*events: str) -> AsyncIterator[str]:
    for event in events:
        yield event


async def told(turn: Turn, *events: str, durable: bool | None) -> list[str]:
    turn.durable = durable
    return [event async for event in Reply(stream(*events), turn)]


async def test_an_answer_that_is_recorded_goes_by_untouched(turn: Turn) -> None:
    assert await told(turn, WORD, USAGE, DONE, durable=True) == [WORD, USAGE, DONE]


async def test_the_mark_is_on_what_comes_last_also_when_that_is_the_usage(turn: Turn) -> None:
    first, usage, done = await told(turn, WORD, USAGE, DONE, durable=False)
    assert (first, done) == (WORD, DONE)
    assert chunk(usage) == chunk(USAGE) | {"rateable": False}


async def test_an_answer_that_ends_without_being_complete_is_marked_in_a_chunk_of_its_own(turn: Turn) -> None:
    *words, last, done = await told(turn, WORD, WORD, DONE, durable=None)
    assert (words, done) == ([WORD, WORD], DONE)
    assert chunk(last)["rateable"] is False
    assert chunk(last)["choices"][0]["delta"] == {}  # what every client can read


async def test_before_the_record_no_event_waits_for_the_next(turn: Turn) -> None:
    seen: list[str] = []

    async def events() -> AsyncIterator[str]:
        yield WORD
        assert seen == [WORD]
        turn.durable = False
        yield WORD
        yield DONE

    async for event in Reply(events(), turn):
        seen.append(event)
    assert chunk(seen[1])["rateable"] is False
    assert seen[2:] == [DONE]


async def test_a_stream_that_breaks_ends_with_an_error_of_ours_and_without_the_end(
    turn: Turn, in_flight: Counter[str]
) -> None:
    word, error = await told(turn, WORD, BROKE, DONE, durable=None)
    assert word == WORD
    assert chunk(error)["error"] == {
        "message": "The answer broke off on our side; the log has it.",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }
    assert in_flight["base"] == 0


@pytest.mark.parametrize(("event", "error"), [(REFUSED, RequestRefused), (BROKE, EngineFailed)])
async def test_what_fails_before_the_first_event_is_no_stream(turn: Turn, event: str, error: type[Exception]) -> None:
    with pytest.raises(error) as failed:
        await Reply(stream(event, DONE), turn).begin()
    if isinstance(failed.value, RequestRefused):
        assert (failed.value.status, failed.value.param, str(failed.value)) == (400, "x", "no such grammar")


async def test_an_event_that_was_waited_for_comes_first(turn: Turn) -> None:
    turn.durable = True
    reply = Reply(stream(WORD, DONE), turn)
    await reply.begin()
    assert [event async for event in reply] == [WORD, DONE]


async def test_closing_it_closes_what_it_reads_from_and_ends_the_turn(turn: Turn, in_flight: Counter[str]) -> None:
    closed: list[bool] = []

    async def events() -> AsyncIterator[str]:
        try:
            yield WORD
            yield WORD
        finally:
            closed.append(True)

    reply = Reply(events(), turn)
    await anext(reply)
    await reply.aclose()
    assert closed == [True]
    assert in_flight["base"] == 0
    assert [event async for event in reply] == []


# --- when time is up ----------------------------------------------------------------------------------


async def hangs(closed: list[bool], *events: str) -> AsyncIterator[str]:
    try:
        for event in events:
            yield event
        await asyncio.get_running_loop().create_future()
    finally:
        closed.append(True)


async def test_a_client_that_reads_is_told_that_time_is_up(in_flight: Counter[str]) -> None:
    closed: list[bool] = []
    turn = await a_turn(in_flight, answer=0.01)
    word, error = [event async for event in Reply(hangs(closed, WORD), turn)]
    assert word == WORD
    assert chunk(error)["error"]["type"] == "timeout_error"
    assert chunk(error)["error"]["code"] == "deadline_exceeded"
    assert closed == [True]
    assert in_flight["base"] == 0


async def test_a_client_that_does_not_read_keeps_nothing_busy_and_is_told_when_it_does(in_flight: Counter[str]) -> None:
    closed: list[bool] = []
    turn = await a_turn(in_flight, answer=0.01)
    reply = Reply(hangs(closed, WORD, WORD), turn)
    await anext(reply)
    while not closed:  # noqa: ASYNC110 - it reads no more; the turn's own timer closes it
        await asyncio.sleep(0.001)
    [error] = [event async for event in reply]
    assert chunk(error)["error"]["code"] == "deadline_exceeded"


async def test_without_a_first_token_in_time_there_is_no_stream(in_flight: Counter[str]) -> None:
    turn = await a_turn(in_flight, first=1.0, ago=1.0)
    with pytest.raises(DeadlineExceeded, match="No token came within 1 seconds"):
        await Reply(hangs([]), turn).begin()


async def test_time_that_was_up_before_the_stream_was_there_begins_nothing(in_flight: Counter[str]) -> None:
    turn = await a_turn(in_flight, answer=1.0, ago=1.0)
    await until(lambda: turn.late is not None)
    closed: list[bool] = []
    with pytest.raises(DeadlineExceeded, match="did not end within 1 seconds"):
        await Reply(hangs(closed, WORD), turn).begin()
    assert closed == [], "it never ran"
    assert in_flight["base"] == 0


async def test_after_the_first_token_only_the_whole_answer_has_a_deadline(in_flight: Counter[str]) -> None:
    turn = await a_turn(in_flight, first=1.0, answer=3600.0, ago=1.0)
    turn.sampled()
    assert turn.first_token_seconds is not None
    await until(lambda: turn._timer.when() > asyncio.get_running_loop().time() + 60)
    assert turn.late is None
    turn.end()


async def test_a_reader_that_is_cancelled_by_others_too_is_cancelled(in_flight: Counter[str]) -> None:
    turn = await a_turn(in_flight, answer=3600.0)
    reader = asyncio.create_task(anext(Reply(hangs([]), turn)))  # pyright: ignore[reportArgumentType]
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert in_flight["base"] == 0
