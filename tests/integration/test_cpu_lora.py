"""LoRA on a CPU against plain sums, token by token, and against PEFT in transformers through the whole engine."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from serving import cpu_lora
from serving.contracts import Answer
from serving.engine import VllmEngine
from serving.settings import ServingSettings
from serving.side_by_side import COMBINATIONS_KEPT, Batch, SideBySide
from tests.adapters import random_adapter
from tests.tiny_models import ARCHITECTURES, build

SLOTS, RANK, IN, SLICES = 4, 8, 32, (48, 16, 16)
TOLERANCE = 2e-4  # nats a token: float32 through two implementations of the same layers


def layer(seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    dice = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN, generator=dice) for _ in SLICES)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=dice) for width in SLICES)
    return a, b


def lora_for(slot_of_token: list[int]) -> SideBySide:
    found = SideBySide(256, 64, "cpu")
    found._batch = Batch.of(torch.tensor(slot_of_token))
    found._masks.clear()
    return found


def by_hand(y: Tensor, x: Tensor, a: tuple[Tensor, ...], b: tuple[Tensor, ...], slots: list[int]) -> Tensor:
    """One token after the other, [tokens, out]."""
    wanted = y.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            wanted[token] += torch.cat([b_[slot, 0] @ (a_[slot, 0] @ x[token]) for a_, b_ in zip(a, b, strict=True)])
    return wanted


@pytest.mark.parametrize(
    "slots", [[0] * 5, [-1] * 5, [3, -1, 3, 0, -1], [0, 1, 2, 3, -1, 0], [2], [-1, 1]], ids=lambda slots: str(slots)
)
def test_each_token_gets_its_own_adapter_and_a_base_token_none(slots: list[int]) -> None:
    a, b = layer(1)
    dice = torch.Generator().manual_seed(2)
    x, y = torch.randn(len(slots), IN, generator=dice), torch.randn(len(slots), sum(SLICES), generator=dice)
    wanted = by_hand(y, x, a, b, slots)
    base_rows = y[[slot < 0 for slot in slots]].clone()
    lora_for(slots).add_lora_linear(y, x, a, b, 1.0, SLICES)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-4)
    assert torch.equal(y[[slot < 0 for slot in slots]], base_rows)


def test_a_slot_that_is_given_another_adapter_is_joined_anew() -> None:
    a, b = layer(3)
    lora, x = lora_for([1, 1]), torch.ones(2, IN)
    lora.add_lora_linear(torch.zeros(2, sum(SLICES)), x, a, b, 1.0, SLICES)
    with torch.inference_mode():  # as vLLM's worker does it
        for weights in (*a, *b):
            weights[1] *= 2
    y = torch.zeros(2, sum(SLICES))
    with torch.inference_mode():
        lora.add_lora_linear(y, x, a, b, 1.0, SLICES)
    torch.testing.assert_close(y, by_hand(torch.zeros_like(y), x, a, b, [1, 1]), rtol=1e-5, atol=1e-3)


def test_memory_does_not_grow_with_the_combinations_that_were_seen() -> None:
    a, b = layer(4)
    lora = lora_for([0])
    for slots in ([0], [1], [2], [3], [0, 1], [1, 2], [0, 1, 2, 3]):
        lora._batch = Batch.of(torch.tensor(slots))
        lora._masks.clear()
        lora.add_lora_linear(torch.zeros(len(slots), sum(SLICES)), torch.ones(len(slots), IN), a, b, 1.0, SLICES)
    ((_, joined),) = lora._joined.values()
    assert len(joined) == COMBINATIONS_KEPT


@pytest.mark.skipif(torch.cuda.is_available(), reason="the LoRA of a CPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_mixed_batches_score_as_peft_does(architecture: str, tmp_path: Path) -> None:
    assert cpu_lora.in_use(), "install the project, so that vLLM finds its entry point"
    model = build(architecture, tmp_path / "model")
    adapters = {f"policy-000{k}-0000000{k}": random_adapter(model, tmp_path / f"a{k}", seed=k) for k in (1, 2, 3)}
    answers = [Answer(prompt_token_ids=tuple(range(10, 30 + n)), token_ids=tuple(range(60, 75 + n))) for n in range(4)]
    engine = VllmEngine(model, ServingSettings(adapter_places=4))
    try:
        for name, directory in adapters.items():
            await engine.load(name, str(directory))
        asked = [(name, answer) for answer in answers for name in adapters]
        found = await asyncio.gather(*(engine.score(name, answer) for name, answer in asked))
    finally:
        engine.shutdown()
    for (name, answer), logprobs in zip(asked, found, strict=True):
        wanted = _peft(model, adapters[name], answer)
        assert max(abs(ours - theirs) for ours, theirs in zip(logprobs, wanted, strict=True)) < TOLERANCE


@pytest.mark.skipif(torch.cuda.is_available(), reason="the LoRA of a CPU")
async def test_a_compiled_model_follows_its_adapters(tmp_path: Path) -> None:
    """Compiled once, with adapters that come, go and take each other's slots."""
    model = build("llama", tmp_path / "model")
    names = [f"policy-000{k}-0000000{k}" for k in range(5)]
    adapters = {name: random_adapter(model, tmp_path / name, seed=k) for k, name in enumerate(names)}
    answer = Answer(prompt_token_ids=tuple(range(10, 40)), token_ids=tuple(range(60, 80)))
    engine = VllmEngine(model, ServingSettings(adapter_places=4, compiled=True))
    try:
        for first, second in pairwise(names):  # more adapters than there are slots
            await engine.load(first, str(adapters[first]))
            await engine.load(second, str(adapters[second]))
            found = await asyncio.gather(*(engine.score(name, answer) for name in (first, second)))
            for name, logprobs in zip((first, second), found, strict=True):
                wanted = _peft(model, adapters[name], answer)
                assert max(abs(ours - theirs) for ours, theirs in zip(logprobs, wanted, strict=True)) < TOLERANCE
            await engine.unload(first)
            await engine.unload(second)
    finally:
        engine.shutdown()


def _peft(model: Path, adapter: Path, answer: Answer) -> list[float]:
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(adapter))
    ids = torch.tensor([[*answer.prompt_token_ids, *answer.token_ids]])
    with torch.no_grad():
        logprobs = policy(input_ids=ids).logits[0].double().log_softmax(-1)
    first = len(answer.prompt_token_ids)
    return [logprobs[at - 1, token].item() for at, token in enumerate(ids[0].tolist()) if at >= first]
