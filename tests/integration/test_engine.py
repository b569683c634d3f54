"""vLLM behind our `Engine`: every symbol that `serving/engine.py` uses, held to real chats and real swaps.

On a CPU, stock vLLM 0.32 gives base-model rows the last adapter's weights when a batch mixes them. The engine's spare
slot avoids that, and the mixed batches here would show it if it did not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.contracts import BASE, EngineOutput
from serving.engine import VllmEngine
from serving.errors import AdapterRefused, RequestRefused
from serving.settings import ServingSettings
from tests.adapters import random_adapter
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


async def test_a_client_that_goes_away_leaves_no_record_and_no_request(engine: VllmEngine) -> None:
    records: list[EngineOutput] = []

    async def record(output: EngineOutput) -> None:
        records.append(output)

    body = {"model": BASE, "messages": PROMPT, "max_tokens": 400, "stream": True}
    answer = await engine.chat(body, "chatcmpl-leaves", record)
    assert answer.stream is not None
    await anext(answer.stream)
    await answer.stream.aclose()  # type: ignore[attr-defined]
    assert await greedy(engine, BASE, "after") and not records


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
