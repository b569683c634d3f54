"""vLLM behind our `Engine`: every symbol that `serving/engine.py` uses, held to real chats and real swaps.

On a CPU, stock vLLM 0.32 gives base-model rows the last adapter's weights when a batch mixes them. The engine's spare
slot avoids that, and the mixed batches here would show it if it did not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serving.contracts import BASE, Caller, EngineOutput
from serving.engine import VllmEngine
from serving.errors import AdapterRefused, DeadlineExceeded, RequestRefused
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.adapters import random_adapter
from tests.fakes import FakeJournal
from tests.tiny_models import build

PROMPT = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(model, ServingSettings(adapter_places=4))
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
async def adapters(engine: VllmEngine, model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every place is filled, so the slot that vLLM wrongly reads is the spare one."""
    names = []
    for k in range(4):
        directory = random_adapter(model, tmp_path_factory.mktemp(f"adapter{k}"), seed=k)
        names.append(f"policy-000{k + 1}-0000000{k}")
        await engine.load(names[-1], str(directory))
        await engine.warm_up(names[-1])
    return names


async def _ignore(output: EngineOutput) -> None:
    pass


async def greedy(engine: VllmEngine, adapter: str, tag: str) -> str:
    body = {"model": adapter, "messages": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    answer = await engine.chat(body, f"chatcmpl-{tag}", _ignore)
    assert answer.body is not None
    return answer.body["choices"][0]["message"]["content"]


async def test_a_batch_that_mixes_base_and_adapters_gives_each_its_own_answer(
    engine: VllmEngine, adapters: list[str]
) -> None:
    names = [BASE, *adapters]
    alone = {name: await greedy(engine, name, f"alone-{name}") for name in names}
    assert len(set(alone.values())) == len(names), "the adapters must differ for this test to see anything"
    crowd = [names[i % len(names)] for i in range(16)]
    mixed = await asyncio.gather(*(greedy(engine, name, f"mixed-{i}") for i, name in enumerate(crowd)))
    assert [alone[name] for name in crowd] == mixed


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_recorded_is_what_was_served(engine: VllmEngine, stream: bool) -> None:
    records: list[EngineOutput] = []
    seen: list[str] = []

    async def record(output: EngineOutput) -> None:
        ended = sum('"finish_reason":"' in chunk for chunk in seen)
        assert ended < 2, "the client saw the end of its last choice before the record"
        records.append(output)

    body = {"model": BASE, "messages": PROMPT, "max_tokens": TOKENS, "n": 2, "stream": stream, "temperature": 1}
    answer = await engine.chat(body, f"chatcmpl-record-{stream}", record)
    if answer.stream is not None:
        async for chunk in answer.stream:
            seen.append(chunk)
        assert seen[-1] == "data: [DONE]\n\n"
    (output,) = records
    assert len(output.choices) == 2
    assert all(0 < len(choice.token_ids) <= TOKENS for choice in output.choices)
    if answer.body is not None:
        served = [choice["message"]["content"] for choice in answer.body["choices"]]
        assert served == [choice.text for choice in output.choices]
        assert answer.body["usage"]["prompt_tokens"] == len(output.prompt_token_ids)


LONG: dict[str, Any] = {"model": BASE, "messages": PROMPT, "max_tokens": 400, "temperature": 1}


async def let_go(engine: VllmEngine, since: float) -> None:
    """The engine's scheduler works on nothing any more, within a second; what it says of itself comes from its process."""
    while engine._llm.output_processor.get_num_unfinished_requests():
        assert time.monotonic() - since < 1
        await asyncio.sleep(0.01)


async def begun(engine: VllmEngine, id: str, kept: list[EngineOutput], **fields: Any) -> tuple[Any, asyncio.Event]:
    """A request that runs: what it returns, and an event for its first token."""
    first = asyncio.Event()

    async def keep(output: EngineOutput) -> None:
        kept.append(output)

    return engine.chat({**LONG, **fields}, id, keep, first.set), first


@pytest.mark.parametrize("n", [1, 2])
async def test_closing_a_stream_stops_the_engine_within_a_second_and_keeps_what_was_sampled(
    engine: VllmEngine, n: int
) -> None:
    kept: list[EngineOutput] = []
    chat, first = await begun(engine, f"chatcmpl-leaves-{n}", kept, stream=True, n=n)
    stream = (await chat).stream
    seen = [await anext(stream) for _ in range(4 * n)]
    assert first.is_set()
    since = time.monotonic()
    await stream.aclose()
    await let_go(engine, since)
    [output] = kept
    assert output.outcome == "cancelled"
    assert {choice.finish_reason for choice in output.choices} == {"cancelled"}
    assert output.prompt_token_ids and all(0 < len(choice.token_ids) < 400 for choice in output.choices)
    texts = {choice.index: choice.text for choice in output.choices}
    for event in seen:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            said = choice["delta"].get("content", "")
            assert texts[choice["index"]].startswith(said)
            texts[choice["index"]] = texts[choice["index"]].removeprefix(said)
    assert await greedy(engine, BASE, f"after-{n}")


@pytest.mark.parametrize("n", [1, 2])
async def test_stopping_a_whole_answer_stops_the_engine_and_keeps_what_was_sampled(engine: VllmEngine, n: int) -> None:
    kept: list[EngineOutput] = []
    chat, first = await begun(engine, f"chatcmpl-stops-{n}", kept, n=n)
    asks = asyncio.create_task(chat)
    await first.wait()
    states: dict[str, Any] = engine._llm.output_processor.request_states
    while not states or any(state.detokenizer.num_output_tokens() < 3 for state in states.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    since = time.monotonic()
    await engine.stop(f"chatcmpl-stops-{n}")
    await asyncio.wait([asks])
    await let_go(engine, since)
    [output] = kept
    assert (output.outcome, len(output.choices)) == ("cancelled", n)
    assert all(3 <= len(choice.token_ids) < 400 for choice in output.choices)
    assert await greedy(engine, BASE, f"after-stop-{n}")


async def test_a_request_that_is_stopped_before_it_has_begun_never_does(engine: VllmEngine) -> None:
    kept: list[EngineOutput] = []
    chat, first = await begun(engine, "chatcmpl-never", kept)
    asks = asyncio.create_task(chat)
    await asyncio.sleep(0)  # its prompt is being rendered
    await engine.stop("chatcmpl-never")
    await asyncio.wait([asks])
    assert not first.is_set()
    assert [output.outcome for output in kept] == ["cancelled"]
    await engine.stop("chatcmpl-never")


async def test_a_whole_answer_says_when_its_first_token_came_and_is_as_it_would_be_in_one_part(
    engine: VllmEngine,
) -> None:
    kept: list[EngineOutput] = []
    fields = {"n": 2, "max_tokens": TOKENS, "logprobs": True, "top_logprobs": 1, "seed": 3}
    chat, first = await begun(engine, "chatcmpl-parts", kept, **fields)
    asks = asyncio.create_task(chat)
    await first.wait()
    assert not asks.done()
    body = (await asks).body
    [output] = kept
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for choice, kept_choice in zip(body["choices"], output.choices, strict=True):
        assert choice["message"]["content"] == kept_choice.text
        assert len(choice["logprobs"]["content"]) == len(kept_choice.token_ids)
        assert choice["finish_reason"] == kept_choice.finish_reason
    assert body["usage"]["completion_tokens"] == sum(len(choice.token_ids) for choice in output.choices)


async def test_prompts_and_answers_keep_to_the_limits_of_the_deployment(engine: VllmEngine) -> None:
    try:
        engine._llm.max_prompt_tokens = 3
        with pytest.raises(RequestRefused, match=r"the limit is 3 \(serving.max_prompt_tokens\)") as refused:
            await greedy(engine, BASE, "too-long")
        assert (refused.value.param, refused.value.code) == ("messages", "prompt_too_long")
    finally:
        engine._llm.max_prompt_tokens = None
    kept: list[EngineOutput] = []
    try:
        engine._chat.override_max_tokens = 5
        chat, _ = await begun(engine, "chatcmpl-capped", kept, max_tokens=None)
        await chat
    finally:
        engine._chat.override_max_tokens = None
    assert [len(choice.token_ids) for choice in kept[0].choices] == [5]


async def test_a_stream_that_the_engine_refuses_is_refused_and_not_recorded(engine: VllmEngine, tmp_path: Path) -> None:
    journal = FakeJournal()
    replica = Replica("one", engine, journal, tmp_path, ServingSettings())
    await replica.start()
    for stream in (False, True):
        with pytest.raises(RequestRefused):
            await replica.chat({**LONG, "max_tokens": 10**6, "stream": stream}, Caller(app="shop"))
    await replica.close()
    assert not journal.records
    assert not replica.status().in_flight


async def ended_with(replica: Replica, body: dict[str, Any]) -> str:
    """The code of the error, before the first token or after it."""
    try:
        answer = await replica.chat(body, Caller(app="shop"))
    except DeadlineExceeded as error:
        return error.code
    assert answer.stream is not None, "the whole answer was there in time"
    *_, last = [event async for event in answer.stream]
    return json.loads(last.removeprefix("data: "))["error"]["code"]


async def test_past_its_deadline_the_engine_lets_go_and_the_record_says_so(engine: VllmEngine, tmp_path: Path) -> None:
    journal = FakeJournal()
    replica = Replica("one", engine, journal, tmp_path, ServingSettings(answer_seconds=0.01, drain_seconds=1))
    await replica.start()
    for stream in (False, True):
        assert await ended_with(replica, LONG | {"n": 8, "stream": stream}) == "deadline_exceeded"
        await let_go(engine, time.monotonic())
    await replica.close()
    assert {record.outcome for record in journal.records} == {"cancelled"}
    assert not replica.status().in_flight


async def test_every_control_token_is_one_token_wherever_it_stands(engine: VllmEngine) -> None:
    tokenizer: Any = engine._llm.get_tokenizer()
    assert engine.control_tokens
    for text in engine.control_tokens:
        assert tokenizer.convert_tokens_to_ids(text) in tokenizer.encode(f"a{text}b", add_special_tokens=False)


async def test_loading_and_unloading_leaves_nothing_behind(
    engine: VllmEngine, adapters: list[str], model: Path, tmp_path: Path
) -> None:
    before = await greedy(engine, adapters[0], "before")
    await engine.unload(adapters[3])
    for k in range(4):
        name = f"policy-00{k + 10}-00000000"
        await engine.load(name, str(random_adapter(model, tmp_path / str(k), seed=10 + k)))
        await engine.warm_up(name)
        await engine.unload(name)
    assert len(await engine._llm.list_loras()) == 3
    assert await greedy(engine, adapters[0], "after-swaps") == before


async def test_an_adapter_that_does_not_load_changes_nothing(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterRefused):
        await engine.load("policy-0099-deadbeef", str(tmp_path))
    assert await greedy(engine, BASE, "still-there")
    with pytest.raises(RequestRefused):
        await greedy(engine, "policy-0099-deadbeef", "unknown")


async def test_the_engine_says_that_it_lives(engine: VllmEngine) -> None:
    await engine.check_health()
