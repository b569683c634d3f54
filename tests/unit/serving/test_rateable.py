"""How a stream tells that its answer cannot be rated."""

from __future__ import annotations

from collections.abc import AsyncIterator

from serving.rateable import Record, marked
from tests.fakes import chunk

DONE = "data: [DONE]\n\n"
WORD = 'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'
USAGE = 'data: {"id": "c", "choices": [], "usage": {"total_tokens": 3}}\n\n'
ERROR = 'data: {"error": {"message": "the engine is gone"}}\n\n'


async def _marked(record: Record, *events: str) -> list[str]:
    async def stream() -> AsyncIterator[str]:
        for event in events:
            yield event

    return [event async for event in marked(stream(), record)]


async def test_an_answer_that_is_recorded_goes_by_untouched() -> None:
    assert await _marked(Record(durable=True), WORD, USAGE, DONE) == [WORD, USAGE, DONE]


async def test_the_mark_is_on_what_comes_last_also_when_that_is_the_usage() -> None:
    first, usage, done = await _marked(Record(durable=False), WORD, USAGE, DONE)
    assert (first, done) == (WORD, DONE)
    assert chunk(usage) == chunk(USAGE) | {"rateable": False}


async def test_an_answer_that_ends_without_being_complete_is_marked_in_a_chunk_of_its_own() -> None:
    *words, last, done = await _marked(Record(), WORD, WORD, DONE)
    assert (words, done) == ([WORD, WORD], DONE)
    assert chunk(last)["rateable"] is False
    assert chunk(last)["choices"][0]["delta"] == {}  # what every client can read


async def test_a_stream_that_broke_off_says_nothing_more() -> None:
    assert await _marked(Record(), WORD, ERROR, DONE) == [WORD, ERROR, DONE]


async def test_before_the_record_no_event_waits_for_the_next() -> None:
    record = Record()
    seen: list[str] = []

    async def stream() -> AsyncIterator[str]:
        yield WORD
        assert seen == [WORD]
        record.durable = False
        yield WORD
        yield DONE

    async for event in marked(stream(), record):
        seen.append(event)
    assert chunk(seen[1])["rateable"] is False
    assert seen[2:] == [DONE]


async def test_closing_it_closes_what_it_reads_from() -> None:
    closed: list[bool] = []

    async def stream() -> AsyncIterator[str]:
        try:
            yield WORD
            yield WORD
        finally:
            closed.append(True)

    events = marked(stream(), Record())
    await anext(events)
    await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    assert closed == [True]
