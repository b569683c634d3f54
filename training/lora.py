"""LoRA: a frozen matrix W and a trainable update scale * B A of low rank, as one layer with a gradient of its own.

    y = x (W + scale * B A)^T          arXiv:2106.09685

The update is added to a copy of W: a matrix product of `rank` columns is mostly waiting for memory, and this way none has
to be read or written for every token. The copy is made once a step where there is memory to keep it; else in the forward
pass and again in the backward pass. In bfloat16 small updates would be rounded away, so there both products are computed
apart. Parameters have PEFT's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from training.contracts import LoraSpec
from training.errors import AdapterInvalid, TrainingError

_PREFIX = "base_model.model."  # what PEFT puts before a layer's own name


class LoraLinear(nn.Module):
    """A linear layer with its update. B = 0 at first, so that it begins as the layer it replaces."""

    merged: Tensor | None

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        super().__init__()
        self.base_layer = base
        self.scale = spec.alpha / spec.rank
        like = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(spec.rank, base.in_features, **like))  # [rank, inputs]
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, spec.rank, **like))  # [outputs, rank]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.keeps_merged = False
        self.register_buffer("merged", None, persistent=False)  # [outputs, inputs]
        self._merged_from: tuple[int, int, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merged if self._merged_from == self._update else None  # another one than now: of no use
        y = _Lora.apply(x, self.base_layer.weight, merged, self.lora_A, self.lora_B, self.scale)
        return y if self.base_layer.bias is None else y + self.base_layer.bias  # pyright: ignore

    @torch.no_grad()
    def merge(self) -> None:
        """Make the kept copy, if there is to be one, that of the update as it is now."""
        weight = self.base_layer.weight
        if not self.keeps_merged or weight.dtype != torch.float32 or self._merged_from == self._update:
            return
        if self.merged is None:
            self.merged = torch.empty_like(weight)
        torch.addmm(weight, self.lora_B, self.lora_A, alpha=self.scale, out=self.merged)
        self._merged_from = self._update

    @property
    def _update(self) -> tuple[int, int, float]:
        """Differs when A, B or the scale has changed: PyTorch counts how often a tensor was written to."""
        return self.lora_A._version, self.lora_B._version, self.scale


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, merged: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, weight, merged, a, b)
        ctx.scale = scale
        if weight.dtype == torch.float32:
            return x @ (torch.addmm(weight, b, a, alpha=scale) if merged is None else merged).T
        y = x @ weight.T
        return y.add_((x @ a.to(x.dtype).T) @ b.to(x.dtype).T, alpha=scale)

    @staticmethod
    def backward(ctx, by_y: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:  # pyright: ignore
        x, weight, merged, a, b = ctx.saved_tensors
        tokens_x, tokens_y = x.flatten(0, -2), by_y.flatten(0, -2)  # [tokens, inputs], [tokens, outputs]
        a_, b_ = a.to(x.dtype), b.to(x.dtype)
        # Written so that the thin matrix is never the transposed one: the other way is ten times slower on a CPU.
        by_update = b_.T @ tokens_y.T  # [rank, tokens]
        by_a = (by_update @ tokens_x).float() * ctx.scale
        by_b = ((a_ @ tokens_x.T) @ tokens_y).float().T.contiguous() * ctx.scale
        by_x = None
        if ctx.needs_input_grad[0]:
            if weight.dtype == torch.float32:
                by_x = by_y @ (torch.addmm(weight, b, a, alpha=ctx.scale) if merged is None else merged)
            else:
                by_x = (by_y @ weight).add_((by_update.T @ a_).view_as(x), alpha=ctx.scale)
        return by_x, None, None, by_a, by_b, None


def attach(base: nn.Module, spec: LoraSpec, seed: int) -> None:
    """Give every linear layer of the model but its output head an update. A is random: one seed, one adapter."""
    head = base.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    found = [
        (name, layer) for name, layer in base.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    ]
    if not found:
        raise TrainingError("the base model has no linear layers that an adapter could be trained for")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in found:
            base.set_submodule(name, LoraLinear(layer, spec))


def layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with an update, by their names in the base model, in its order."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield name, layer


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors under the names PEFT saves them with."""
    return {
        f"{_PREFIX}{name}.lora_{half}.weight": getattr(layer, f"lora_{half}")
        for name, layer in layers(model)
        for half in ("A", "B")
    }


@contextmanager
def without_update(model: nn.Module) -> Iterator[None]:
    """The base model itself, for as long as the context lasts. For measuring; never for a reference (invariant 1)."""
    scales = [(layer, layer.scale) for _, layer in layers(model)]
    try:
        for layer, _ in scales:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in scales:
            layer.scale = scale


def load(model: nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Take over an adapter's weights. Raises `AdapterInvalid` when they are not those of this model's layers."""
    ours = parameters(model)
    if ours.keys() != weights.keys():
        odd = sorted(ours.keys() ^ weights.keys())[0]
        raise AdapterInvalid(f"its tensors are not those of this base model's adapter: {odd}")
    with torch.no_grad():
        for name, parameter in ours.items():
            if tuple(parameter.shape) != weights[name].shape:
                raise AdapterInvalid(f"{name} has shape {weights[name].shape} and not {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(weights[name]))
