"""What a candidate answers before anybody is answered by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.contracts import BASE, AdapterFiles, Ask, ChatAnswer, Route
from serving.errors import AdapterRefused, UnknownModel
from serving.ports import OnEnded, OnSampled, unseen
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapter_files import flip_byte, write_adapter
from tests.fakes import LONGEST_PROMPT, FakeEngine, FakeJournal, authors


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    """A candidate that nobody has published."""
    return write_adapter(tmp_path / "candidate", 1)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(tokens=3)


@pytest.fixture
async def replica(engine: FakeEngine, tmp_path: Path) -> Replica:
    replica = Replica("one", engine, FakeJournal(route=Route(generation=1)), tmp_path / "cache", ServingSettings())
    await replica.start()
    return replica


def ask(question: str, *, max_tokens: int = 8, seed: int = 0) -> Ask:
    return Ask(messages=({"role": "user", "content": question},), max_tokens=max_tokens, seed=seed)


async def test_a_candidate_answers_and_stays_until_it_is_abandoned(
    replica: Replica, engine: FakeEngine, files: AdapterFiles
) -> None:
    sampled = await replica.sample(files.name, files, [ask("a"), ask("b", seed=7)], at_once=2)
    assert [authors(answer.text) for answer in sampled.answers] == [{files.name}] * 2
    assert [answer.finish_reason for answer in sampled.answers] == ["stop", "stop"]
    assert "/7/" in sampled.answers[1].text
    assert engine.loaded == {files.name}
    assert replica.status().in_flight == {}
    await replica.abandon(files.name)
    assert engine.loaded == set()


async def test_what_is_served_is_asked_by_its_name(replica: Replica) -> None:
    sampled = await replica.sample(BASE, None, [ask("a", max_tokens=2)], at_once=1)
    assert (sampled.replica, authors(sampled.answers[0].text)) == ("one", {BASE})
    assert (sampled.answers[0].finish_reason, sampled.answers[0].seconds >= 0) == ("length", True)
    with pytest.raises(UnknownModel):
        await replica.sample("policy-0009-00000009", None, [ask("a")], at_once=1)


async def test_nothing_of_it_is_recorded(engine: FakeEngine, tmp_path: Path, files: AdapterFiles) -> None:
    journal = FakeJournal()
    replica = Replica("one", engine, journal, tmp_path / "cache", ServingSettings())
    await replica.start()
    await replica.sample(files.name, files, [ask("a")], at_once=1)
    assert journal.records == []


async def test_a_chat_that_the_engine_does_not_take_is_an_answer_without_words(replica: Replica) -> None:
    sampled = await replica.sample(BASE, None, [ask("x" * LONGEST_PROMPT), ask("a")], at_once=2)
    assert [(answer.text == "", answer.finish_reason) for answer in sampled.answers] == [
        (True, "refused"),
        (False, "stop"),
    ]


async def test_without_a_question_a_candidate_must_load_all_the_same(
    replica: Replica, engine: FakeEngine, files: AdapterFiles
) -> None:
    assert (await replica.sample(files.name, files, [], at_once=1)).answers == ()
    assert engine.loaded == {files.name}


async def test_a_candidate_that_is_not_what_its_manifest_says_is_refused(
    replica: Replica, engine: FakeEngine, files: AdapterFiles
) -> None:
    flip_byte(Path(files.directory) / "adapter_model.safetensors")
    with pytest.raises(AdapterRefused):
        await replica.sample(files.name, files, [ask("a")], at_once=1)
    assert engine.loaded == set()


class CountingEngine(FakeEngine):
    """Knows how many chats it has been at together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().chat(request, request_id, on_ended, on_sampled)
        finally:
            self.now -= 1


async def test_users_find_room_meanwhile(tmp_path: Path) -> None:
    engine = CountingEngine()
    replica = Replica("one", engine, FakeJournal(), tmp_path / "cache", ServingSettings())
    await replica.start()
    await replica.sample(BASE, None, [ask(str(n)) for n in range(9)], at_once=3)
    assert engine.most == 3
