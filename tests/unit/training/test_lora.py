"""LoRA as one layer: PEFT's log-probs, gradients and names, with a backward pass of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import LORA
from training import lora
from training.contracts import LoraSpec
from training.errors import AdapterInvalid, TrainingError
from training.lora import LoraLinear
from training.policy import Policy

TOKEN_IDS = torch.randint(6, 300, (2, 24), generator=torch.Generator().manual_seed(5))


def peers(model: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The same base model with the same adapter, random and not zero: ours and PEFT's."""
    ours: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    ours.requires_grad_(False)
    config = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(ours), config)
    lora.attach(ours, LORA, seed=0)
    generator = torch.Generator().manual_seed(6)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in lora.parameters(ours).items()
    }
    lora.load(ours, {name: tensor.numpy() for name, tensor in weights.items()})
    peft.set_peft_model_state_dict(theirs, weights)
    return ours, theirs


def loss_of(model: Any) -> Tensor:
    """Of the next tokens, with a weight for each so that no gradient is small by symmetry."""
    logprobs = model(input_ids=TOKEN_IDS).logits.float().log_softmax(-1)[:, :-1]
    of_targets = logprobs.gather(-1, TOKEN_IDS[:, 1:, None])[..., 0]
    return (of_targets * torch.linspace(-1, 1, of_targets.numel()).view_as(of_targets)).sum()


def their_gradients(model: Any) -> dict[str, Tensor]:
    return {
        name.replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_gradients_are_pefts(architecture: str, models: dict[str, Path]) -> None:
    ours, theirs = peers(models[architecture], torch.float32)
    our_loss, their_loss = loss_of(ours), loss_of(theirs)
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-4)
    our_loss.backward()
    their_loss.backward()
    expected = their_gradients(theirs)
    assert expected.keys() == lora.parameters(ours).keys()
    for name, parameter in lora.parameters(ours).items():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert difference < 1e-5, name


def test_in_bfloat16_the_update_is_not_rounded_into_the_weights(models: dict[str, Path]) -> None:
    ours, theirs = peers(models["llama"], torch.bfloat16)
    assert {parameter.dtype for parameter in lora.parameters(ours).values()} == {torch.float32}
    loss_of(ours).backward()
    loss_of(theirs).backward()
    expected = their_gradients(theirs)
    for name, parameter in lora.parameters(ours).items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.cosine_similarity(parameter.grad.flatten(), expected[name].float().flatten(), 0) > 0.99, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_update_far_below_the_weights_precision_is_felt(dtype: torch.dtype) -> None:
    layer = LoraLinear(nn.Linear(4, 4, bias=False, dtype=dtype), LoraSpec(rank=1, alpha=1))
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.eye(4))
        layer.lora_A.fill_(1.0)
        layer.lora_B.fill_(2.0**-12)  # a bfloat16 1 + 2**-12 is 1
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=dtype)
    assert layer(x)[0, 0].item() == 2.0**-12


def test_the_saved_names_are_pefts(models: dict[str, Path]) -> None:
    ours, theirs = peers(models["qwen3"], torch.float32)
    expected = peft.get_peft_model_state_dict(theirs)
    assert {name: tensor.shape for name, tensor in lora.parameters(ours).items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=["a row", "rows"])
def test_a_layer_equals_its_formula(bias: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(8)
    layer = LoraLinear(nn.Linear(6, 4, bias=bias).requires_grad_(False), LoraSpec(rank=2, alpha=3))
    with torch.no_grad():
        layer.lora_B.copy_(torch.randn(4, 2, generator=generator))
    x = torch.randn(*shape, 6, generator=generator).requires_grad_()
    weight = layer.base_layer.weight + 1.5 * layer.lora_B @ layer.lora_A
    expected = nn.functional.linear(x, weight, layer.base_layer.bias)
    by_y = torch.randn(expected.shape, generator=generator)
    inputs = (x, layer.lora_A, layer.lora_B)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.autograd.grad(layer(x), inputs, by_y), torch.autograd.grad(expected, inputs, by_y))


def test_one_seed_one_adapter_and_the_worlds_random_numbers_stay(models: dict[str, Path]) -> None:
    def fresh(seed: int) -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(models["llama"])
        state = torch.get_rng_state()
        lora.attach(model, LORA, seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: parameter.detach() for name, parameter in lora.parameters(model).items()}

    first, again, other = fresh(1), fresh(1), fresh(2)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if name.endswith("lora_B.weight"):
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            assert tensor.abs().max() <= 1 / math.sqrt(tensor.shape[1])  # PEFT's and nn.Linear's distribution


def test_every_linear_layer_but_the_head_has_an_update(moved_policies: dict[str, Policy]) -> None:
    for policy in moved_policies.values():
        plain = [n for n, m in policy.base.named_modules() if isinstance(m, nn.Linear) and not n.endswith("base_layer")]
        assert plain == ["lm_head"]
        assert policy.target_modules == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


class OnlyAHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(2, 2)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(TrainingError, match="no linear layers"):
        lora.attach(OnlyAHead(), LORA, seed=0)


def test_weights_come_back_as_they_went(moved_policy: Callable[[str], Policy]) -> None:
    policy, other = moved_policy("llama"), moved_policy("llama")
    for parameter in other.trainable:
        parameter.data.zero_()
    other.load(policy.weights())
    assert all(torch.equal(*pair) for pair in zip(policy.trainable, other.trainable, strict=True))
    saved = policy.weights()
    policy.trainable[0].data.add_(1)
    assert not np.array_equal(next(iter(policy.weights().values())), next(iter(saved.values())))  # it was a copy


def test_weights_of_another_model_are_refused(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    weights = policy.weights()
    name = next(iter(weights))
    with pytest.raises(AdapterInvalid, match="its tensors are not those of this base model's adapter: base_model"):
        policy.load({other: tensor for other, tensor in weights.items() if other != name})
    with pytest.raises(AdapterInvalid, match=r"has shape \(1, 2\) and not"):
        policy.load(weights | {name: np.zeros((1, 2), np.float32)})


def test_without_its_update_a_policy_is_the_base_and_with_it_itself_again(
    moved_policy: Callable[[str], Policy], models: dict[str, Path]
) -> None:
    policy, base = moved_policy("llama"), AutoModelForCausalLM.from_pretrained(models["llama"])
    with torch.no_grad():
        with_update = policy.base(TOKEN_IDS).logits
        with lora.without_update(policy.base):
            torch.testing.assert_close(policy.base(TOKEN_IDS).logits, base(TOKEN_IDS).logits)
        with pytest.raises(ZeroDivisionError), lora.without_update(policy.base):
            raise ZeroDivisionError
        assert torch.equal(policy.base(TOKEN_IDS).logits, with_update)


def gradients_of(policy: Policy) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(policy.base), policy.trainable))


def test_a_kept_copy_gives_the_same_bits_and_is_not_used_once_the_update_has_changed(
    moved_policy: Callable[[str], Policy],
) -> None:
    policy, plain = moved_policy("llama"), moved_policy("llama")
    policy.keep_merged()
    layers = [layer for _, layer in lora.layers(policy.base)]
    policy.merge()
    kept = [layer.merged for layer in layers]
    assert all(merged is not None for merged in kept)
    for _ in range(2):  # the second time with another update and a copy of the first one
        assert all(torch.equal(*pair) for pair in zip(gradients_of(policy), gradients_of(plain), strict=True))
        for either in (policy, plain):
            torch.optim.AdamW(either.trainable, lr=0.1).step(lambda either=either: _step(either))
    policy.merge()
    assert all(layer.merged is merged for layer, merged in zip(layers, kept, strict=True))  # written again, in place
    assert all(torch.equal(*pair) for pair in zip(gradients_of(policy), gradients_of(plain), strict=True))


def _step(policy: Policy) -> float:
    for parameter, gradient in zip(policy.trainable, gradients_of(policy), strict=True):
        parameter.grad = gradient
    return 0.0


def test_without_its_update_a_policy_is_the_base_whatever_copy_it_keeps(moved_policy: Callable[[str], Policy]) -> None:
    policy, plain = moved_policy("llama"), moved_policy("llama")
    policy.keep_merged()
    policy.merge()
    with torch.no_grad(), lora.without_update(policy.base), lora.without_update(plain.base):
        assert torch.equal(policy.base(TOKEN_IDS).logits, plain.base(TOKEN_IDS).logits)


def test_a_copy_that_is_written_again_before_the_backward_pass_is_an_error(
    moved_policy: Callable[[str], Policy],
) -> None:
    policy = moved_policy("llama")
    policy.keep_merged()
    policy.merge()
    loss = loss_of(policy.base)
    policy.load({name: 2 * tensor for name, tensor in policy.weights().items()})
    policy.merge()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, policy.trainable)


def test_bfloat16_keeps_no_copy_because_the_update_would_be_rounded_away(
    moved_policy: Callable[[str], Policy],
) -> None:
    policy = moved_policy("llama")
    policy.to_bfloat16()
    policy.keep_merged()
    policy.merge()
    assert all(layer.merged is None for _, layer in lora.layers(policy.base))
