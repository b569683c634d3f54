"""What happens to one replica in most of its tests: somebody asks, and somebody promotes."""

from __future__ import annotations

from serving.contracts import Caller, ChatAnswer, Route
from serving.replica import Replica
from tests.fakes import FakeJournal, authors, text_of

SHOP = Caller(app="shop")
BODY = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}


async def promote(journal: FakeJournal, replica: Replica, name: str) -> None:
    """What the registry does, on one replica."""
    prepared = await replica.prepare(journal.adapters[name])
    assert prepared.error is None
    journal.current = Route(generation=journal.current.generation + 1, stable=name, previous=journal.current.stable)
    assert (await replica.flip(journal.current)).stable == name


async def begin(replica: Replica) -> ChatAnswer:
    """A stream that has given its first token."""
    answer = await replica.chat(BODY | {"stream": True}, SHOP)
    assert answer.stream is not None
    assert authors(text_of(await anext(answer.stream))) == {answer.adapter}
    return answer


async def finish(answer: ChatAnswer) -> set[str]:
    """The adapters that wrote the rest of the stream."""
    assert answer.stream is not None
    return {author async for event in answer.stream for author in authors(text_of(event))}
