"""The base model's number format: what was asked for, and what rounding costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import LORA, MakeSpec, random_pairs, random_thumbs
from training import lora
from training.policy import Policy
from training.precision import bfloat16_is_faster, choose_dtype, to_bfloat16
from training.rows import Item, lay_out
from training.speed import matrix_product_rate

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EXAMPLES = [*random_pairs(3), *random_thumbs(1)]


def test_what_was_asked_for_is_used_and_otherwise_what_the_device_is_made_for(make_spec: MakeSpec) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        spec = make_spec(rows=[], dtype=str(dtype).removeprefix("torch."))
        assert choose_dtype(spec, CPU) == choose_dtype(spec, GPU) == dtype
    auto = make_spec(rows=[], dtype="auto")
    assert (choose_dtype(auto, CPU), choose_dtype(auto, GPU)) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_rounded_policy_is_the_one_that_is_loaded_in_bfloat16(
    architecture: str, moved_policy: Callable[[str], Policy], models: dict[str, Path]
) -> None:
    policy = moved_policy(architecture)
    weights = policy.weights()
    error = to_bfloat16(policy, EXAMPLES)
    assert 0 < error < 0.2
    assert policy.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in policy.trainable} == {torch.float32}
    assert all((weights[name] == tensor).all() for name, tensor in policy.weights().items())

    base = AutoModelForCausalLM.from_pretrained(models[architecture], dtype=torch.bfloat16).requires_grad_(False)
    lora.attach(base, LORA, seed=0)
    loaded = Policy(base, CPU)
    loaded.load(weights)
    rows = lay_out([Item(example) for example in EXAMPLES], "shared")
    with torch.no_grad():
        assert torch.equal(policy.logprobs(rows), loaded.logprobs(rows))


def test_a_rounded_policy_can_be_trained(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("gemma")
    policy.to_bfloat16()
    policy.logprobs(lay_out([Item(example) for example in EXAMPLES], "shared")).sum().backward()
    for parameter in policy.trainable:
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_bfloat16_is_no_gain_without_instructions_for_it() -> None:
    assert torch.cpu._is_avx512_bf16_supported() or not bfloat16_is_faster(CPU)
    assert not bfloat16_is_faster(GPU)  # there it is chosen from the beginning


def test_the_rate_of_matrix_products_is_plausible() -> None:
    assert 1e8 < matrix_product_rate(CPU, torch.float32) < 1e14
