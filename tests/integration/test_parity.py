"""What training computes is what is served: the engine's log-probs of an adapter against those of transformers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from service.model import resolve
from serving.adapters import CONFIG, WEIGHTS, sha256_of
from serving.contracts import BASE, AdapterFiles, Answer, EngineOutput
from serving.engine import VllmEngine
from serving.errors import AdapterRefused
from serving.host import PolicyHost
from serving.settings import ServingSettings
from tests.adapters import random_adapter
from tests.conftest import Service
from tests.tiny_models import CONTEXT_TOKENS, VOCABULARY, build
from training.adapter import Lineage, write_adapter
from training.contracts import LoraSpec
from training.fingerprints import fingerprints

ADAPTERS = ("policy-0001-00000001", "policy-0002-00000002")
TOLERANCE = 1e-4  # nats a token, of two implementations in float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def directories(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: random_adapter(model, tmp_path_factory.mktemp(name), seed) for seed, name in enumerate(ADAPTERS)}


@pytest.fixture(scope="module")
async def engine(model: Path, directories: dict[str, Path]) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(model, ServingSettings(adapter_places=4))
    for name, directory in directories.items():
        await engine.load(name, str(directory))
    yield engine
    engine.shutdown()


def an_answer(seed: int, prompt_tokens: int, answer_tokens: int) -> Answer:
    chance = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(6, VOCABULARY, (prompt_tokens + answer_tokens,), generator=chance).tolist()
    return Answer(prompt_token_ids=tuple(token_ids[:prompt_tokens]), token_ids=tuple(token_ids[prompt_tokens:]))


def by_transformers(model: Path, adapter: Path, answer: Answer) -> tuple[float, ...]:
    """log p(token | all before it) of the answer's tokens."""
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(adapter))
    token_ids = torch.tensor([[*answer.prompt_token_ids, *answer.token_ids]])
    with torch.no_grad():
        logprobs = policy(input_ids=token_ids).logits[0, :-1].log_softmax(-1)  # [tokens - 1, vocabulary]
    of_tokens = logprobs.gather(-1, token_ids[0, 1:, None])[:, 0]
    return tuple(of_tokens[len(answer.prompt_token_ids) - 1 :].tolist())


async def test_the_engine_scores_an_answer_as_transformers_does(
    engine: VllmEngine, model: Path, directories: dict[str, Path]
) -> None:
    answer = an_answer(seed=1, prompt_tokens=40, answer_tokens=30)
    scores = {name: await engine.score(name, answer) for name in ADAPTERS}
    for name, directory in directories.items():
        assert scores[name] == pytest.approx(by_transformers(model, directory, answer), abs=TOLERANCE)
    apart = [abs(one - other) for one, other in zip(*scores.values(), strict=True)]
    assert max(apart) > 100 * TOLERANCE, "the adapters must differ for this test to see anything"
    assert engine.dtype == "float32"


async def test_scores_are_the_same_in_a_crowd_and_with_a_warm_prefix_cache(engine: VllmEngine) -> None:
    answer = an_answer(seed=2, prompt_tokens=64, answer_tokens=16)
    alone = {name: await engine.score(name, answer) for name in ADAPTERS}

    async def ignore(output: EngineOutput) -> None:
        pass

    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24}
    chats = [engine.chat({**body, "model": name}, f"chatcmpl-{name}", ignore) for name in (BASE, *ADAPTERS)]
    crowd = ADAPTERS * 3
    scored, _ = await asyncio.gather(
        asyncio.gather(*(engine.score(name, answer) for name in crowd)), asyncio.gather(*chats)
    )
    for name, scores in zip(crowd, scored, strict=True):
        assert scores == pytest.approx(alone[name], abs=TOLERANCE)


async def test_tokens_beyond_the_context_are_left_out(engine: VllmEngine) -> None:
    answer = an_answer(seed=3, prompt_tokens=CONTEXT_TOKENS - 10, answer_tokens=10)
    assert len(await engine.score(ADAPTERS[0], answer)) == 9
    beyond = an_answer(seed=3, prompt_tokens=CONTEXT_TOKENS + 10, answer_tokens=10)
    assert await engine.score(ADAPTERS[0], beyond) == ()


# --- in the running service ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seedling() -> Path:
    return resolve("seedling")


@pytest.fixture
def candidate(seedling: Path, tmp_path: Path) -> AdapterFiles:
    """A whole adapter of the seedling's, which nobody has published."""
    trained = random_adapter(seedling, tmp_path / "trained", seed=3)
    config = json.loads((trained / CONFIG).read_text())
    lora = LoraSpec(rank=config["r"], alpha=config["lora_alpha"])
    lineage = Lineage(900, None, 1, fingerprints(seedling), "d" * 64, training={})
    weights = load_file(trained / WEIGHTS)
    manifest = write_adapter(tmp_path, weights, lora, sorted(config["target_modules"]), str(seedling), lineage)
    directory = tmp_path / "adapter"
    return AdapterFiles(
        name=manifest.name, directory=str(directory), manifest_sha256=sha256_of(directory / "manifest.json")
    )


async def test_one_replica_scores_a_candidate_that_nobody_has_published(
    ray_cluster: Service, seedling: Path, candidate: AdapterFiles
) -> None:
    host = PolicyHost()
    answers = [an_answer(seed, prompt_tokens=20, answer_tokens=12) for seed in range(4)]
    scores = await host.score(candidate, answers)
    assert scores.dtype == "float32"
    for answer, logprobs in zip(answers, scores.logprobs, strict=True):
        expected = by_transformers(seedling, Path(candidate.directory), answer)
        assert logprobs == pytest.approx(expected, abs=10 * TOLERANCE)
    holders = [status.replica for status in await host.status() if candidate.name in status.loaded]
    assert holders == [scores.replica]
    await host.abandon(candidate.name)
    assert not any(candidate.name in status.loaded for status in await host.status())


async def test_a_spoiled_candidate_is_refused_with_the_reason(ray_cluster: Service, candidate: AdapterFiles) -> None:
    with pytest.raises(AdapterRefused, match="is not the published one"):
        await PolicyHost().score(candidate.model_copy(update={"manifest_sha256": "0" * 64}), [])


@pytest.fixture
def taught(service: Service) -> Iterator[None]:
    """Pairs that all say the same, so that a round has something to learn."""
    lines = [
        json.dumps({"prompt": f"What is {n} plus {n + 1}?", "chosen": f"It is {2 * n + 1}.", "rejected": f"No {n}?!"})
        for n in range(60)
    ]
    service.operator.post("/ops/preferences/import", content="\n".join(lines)).raise_for_status()
    yield
    if service.operator.get("/ops/status").json()["route"]["stable"] != "base":
        service.operator.post("/ops/rollback", json={"to": "base"}).raise_for_status()


def test_a_round_says_how_serving_agrees_with_training(service: Service, taught: None) -> None:
    n = service.operator.post("/ops/rounds", json={"epochs": 1}).raise_for_status().json()["n"]
    with service.operator.stream("GET", f"/ops/rounds/{n}/events") as events:
        events.read()  # until it is over
    round = service.operator.get(f"/ops/rounds/{n}").json()
    assert round["state"] == "promoted", round["reason"]
    assert round["parity"]["tokens"] > 0
    assert round["parity"]["mean_abs"] < TOLERANCE
    assert round["parity"]["max_abs"] < 100 * TOLERANCE
    assert "parity" in [check["name"] for check in round["verdict"]["checks"] if check["outcome"] == "pass"]
