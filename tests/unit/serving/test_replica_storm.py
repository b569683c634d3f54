"""Swaps one after the other under full load: nothing fails, nothing mixes, nothing stale is served."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

from serving.contracts import BASE, AdapterFiles, Caller, ChatAnswer, Route
from serving.errors import NoRoom
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import write_adapter
from tests.fake_host import FakeHost
from tests.fakes import FakeEngine, FakeJournal, authors, text_of, until

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
        await storm.prepare(files)
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

    async def prepare(self, files: AdapterFiles) -> None:
        """On every replica, as soon as the long answers leave it room."""
        for replica in self._replicas:
            while (error := (await replica.prepare(files)).error) is not None:
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


async def test_splits_rollbacks_and_names_at_once_answer_each_request_as_some_route_since_it_began(
    tmp_path: Path,
) -> None:
    """One replica, whose polls read the row at any moment, while adapters are asked for by name as well."""
    dice = random.Random(7)
    published = [write_adapter(tmp_path / f"published-{ordinal}", ordinal) for ordinal in range(1, 6)]
    names = [files.name for files in published]
    journal, engine = FakeJournal(*published), FakeEngine(capacity=6, tokens=SHORT)
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    await replica.start()
    routes = [journal.current]
    faults: list[str] = []
    answered: Counter[str] = Counter()
    over = asyncio.Event()

    async def client(number: int) -> None:
        while not over.is_set():
            began = replica.status().generation  # and so the place of its route in the list
            model = names[number] if number < 2 else ("policy", "policy@stable")[number % 2]
            body = BODY | {"model": model, "stream": number % 3 == 0, "user": f"user {dice.randrange(50)}"}
            try:
                answer = await replica.chat(body, Caller(app="shop"))
            except NoRoom:
                if number >= 2:
                    faults.append(f"{model} was turned away")
                answered["turned away"] += 1
                await asyncio.sleep(0)
                continue
            places = {(r.candidate, r.baseline) if model == "policy" else () for r in routes[began:]}
            allowed = {model, *(r.stable for r in routes[began:]), *(place for two in places for place in two)}
            if authors(await _text(answer)) != {answer.adapter} or answer.adapter not in allowed:
                faults.append(f"{model} was answered by {answer.adapter}, which is none of {allowed}")
            answered[model if model in names else answer.adapter] += 1

    async def poll() -> None:
        while not over.is_set():
            await replica.reconcile()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(client(number)) for number in range(CLIENTS)] + [asyncio.create_task(poll())]
    for generation in range(1, 41):
        stable, candidate = dice.sample(names, 2)
        share = dice.choice([0.0, 0.3, 0.7])
        route = Route(
            generation=generation, stable=stable, previous=routes[-1].stable, candidate=candidate,
            candidate_share=share, baseline=BASE, baseline_share=0.2,
        )  # fmt: skip
        routes.append(route)
        journal.current = route
        if dice.random() < 0.7:  # the others are found by polling
            await replica.flip(route)
        await until(lambda generation=generation: replica.status().generation == generation or bool(faults))
    over.set()
    await asyncio.gather(*tasks)
    assert faults == []
    assert len(answered) > len(names)
    assert replica.status().in_flight == {}
    await replica.reconcile()
    assert routes[-1].wanted() <= engine.loaded
