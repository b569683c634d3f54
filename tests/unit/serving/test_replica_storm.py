"""Swaps one after the other under full load: nothing fails, nothing mixes, nothing stale is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serving.contracts import BASE, Caller, ChatAnswer, Route
from serving.errors import NoRoom
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import write_adapter
from tests.fakes import FakeEngine, FakeHost, FakeJournal, authors, text_of, until

SWAPS, CLIENTS = 10, 8
SHORT, LONG = 4, 60  # tokens of an answer; a long one outlasts a swap
BODY = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}


async def test_a_storm_of_swaps_fails_mixes_and_delays_nothing(tmp_path: Path) -> None:
    """On two replicas, while clients keep asking, half of them streaming."""
    published = [write_adapter(tmp_path / f"published-{ordinal}", ordinal) for ordinal in range(1, SWAPS + 1)]
    journal = FakeJournal(*published)
    replicas = [
        Replica(name, FakeEngine(tokens=LONG), journal, tmp_path / "cache", ServingSettings())
        for name in ("one", "two")
    ]
    for replica in replicas:
        await replica.start()
    storm = _Storm(replicas)
    clients = [asyncio.create_task(storm.client(number)) for number in range(CLIENTS)]
    for files in published:
        await storm.prepare(files.name)
        journal.current = Route(
            generation=journal.current.generation + 1, stable=files.name, previous=journal.current.stable
        )
        await FakeHost(replicas).flip(journal.current)
        storm.newest = journal.current.generation
        enough = storm.answers + CLIENTS  # so many have ended since that some began anew
        await until(lambda enough=enough: storm.answers > enough or bool(storm.faults))
    storm.over = True
    await asyncio.gather(*clients)
    assert storm.faults == []
    assert {record.adapter for record in journal.records} >= {files.name for files in published}
    assert len(journal.records) == storm.answers
    for replica in replicas:
        await replica.reconcile()
        assert replica.status().in_flight == {}
        assert replica.status().loaded == tuple(sorted(journal.current.wanted()))


class _Storm:
    """Clients that ask without a pause, and what they have to complain of."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self.newest = 0  # the swap that is done on every replica; an answer that begins now is at least this new
        self.over = False
        self.answers = 0
        self.faults: list[str] = []

    async def prepare(self, name: str) -> None:
        """On every replica, as soon as the long answers leave it room."""
        for replica in self._replicas:
            while (error := (await replica.prepare(name)).error) is not None:
                assert error.startswith(NoRoom.__name__), error
                await asyncio.sleep(0)

    async def client(self, number: int) -> None:
        replica = self._replicas[number % 2]
        body = BODY | {"stream": number % 4 < 2, "max_tokens": LONG if number % 7 == 0 else SHORT}
        while not self.over:
            newest = self.newest
            try:
                answer = await replica.chat(body, Caller(app="shop"))
                said = authors(await _text(answer))
            except Exception as error:
                self.faults.append(f"failed: {error!r}")
                return
            self.answers += 1
            await asyncio.sleep(0.002)  # people read what they asked for; and the threads that verify get their turn
            if said != {answer.adapter}:
                self.faults.append(f"mixed: {said}")
            if (0 if answer.adapter == BASE else int(answer.adapter.split("-")[1])) < newest:
                self.faults.append(f"stale: {answer.adapter} after swap {newest}")


async def _text(answer: ChatAnswer) -> str:
    if answer.stream is not None:
        return "".join([text_of(event) async for event in answer.stream])
    assert answer.body is not None
    return answer.body["choices"][0]["message"]["content"]
