"""The LoRA arithmetic of `cpu_lora.py`: the adapters of a batch side by side, as one low-rank layer.

Loaded inside vLLM's processes only. Weights are `[slots, 1, rank, in]` for A and `[slots, 1, out, rank]` for B, one of
each for every slice of a fused layer (q, k and v; gate and up), as vLLM stacks them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Stacked = tuple[Tensor, ...]  # of each slice
Slots = tuple[int, ...]

COMBINATIONS_KEPT = 4  # of adapters, for each layer: a swap has three at most, and one to spare


@dataclass(frozen=True)
class Batch:
    """Which adapters the tokens of a step use."""

    slots: Slots  # in use, ascending
    own: Tensor | None  # [tokens, slots], 1 where the token uses the slot; None: all tokens use the only one

    @staticmethod
    def of(slot_of_token: Tensor) -> Batch:
        """`slot_of_token`: [tokens], -1 for a base-model token."""
        found = torch.unique(slot_of_token)
        slots = found[found >= 0]
        if len(found) == 1 and len(slots) == 1:
            return Batch((int(slots[0]),), None)
        return Batch(tuple(slots.tolist()), slot_of_token[:, None] == slots)


class Joined:
    """The adapters of some slots as one low-rank layer; made anew when a slot's weights have changed."""

    def __init__(self, a: Stacked, b: Stacked, slots: Slots) -> None:
        self._weights = (*a, *b)
        self._written = self._version()
        rank, rows, out = a[0].shape[-2], len(a) * a[0].shape[-2], sum(part.shape[-2] for part in b)
        self.down_t = torch.cat([part[slot, 0] for slot in slots for part in a]).t()  # [in, slots * rows]
        self.up = b[0].new_zeros(len(slots) * rows, out)  # [slots * rows, out]
        for n, slot in enumerate(slots):
            column = 0
            for slice_number, part in enumerate(b):
                row, width = n * rows + slice_number * rank, part.shape[-2]
                self.up[row : row + rank, column : column + width] = part[slot, 0].t()
                column += width
        self.rows_per_slot = rows

    @property
    def current(self) -> bool:
        return self._written == self._version()

    def _version(self) -> int:
        """Torch counts every write to a tensor; a slot that is given another adapter is written to."""
        return sum(weight._version for weight in self._weights)

    def add(self, y: Tensor, x: Tensor, scale: float, own: Tensor | None) -> None:
        """`y` [tokens, out] += scale * x [tokens, in] @ A.T @ B of each token's own adapter."""
        hidden = x @ self.down_t
        if own is not None:
            hidden *= own
        y.addmm_(hidden, self.up, alpha=scale)


class SideBySide(PunicaWrapperCPU):
    """What vLLM's LoRA layers call; one for all layers of a model."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._batch = Batch((), None)
        self._masks: dict[int, Tensor] = {}  # rows per slot -> [tokens, slots * rows], of this step
        self._joined: dict[int, tuple[Tensor, OrderedDict[Slots, Joined]]] = {}  # address of a layer's A -> it, joined
        self._number = len(_of_this_process)
        _of_this_process.append(self)

    def update_metadata(self, *arguments: Any, **named: Any) -> None:
        super().update_metadata(*arguments, **named)
        self._batch = Batch.of(self.token_lora_indices)
        self._masks.clear()

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: Stacked | None = None,
        **named: Any,
    ) -> None:
        """`y` [tokens, out] += what each token's adapter adds to `x` [tokens, in]; base-model rows stay as they are."""
        assert tuple(part.shape[-2] for part in lora_b_stacked) == tuple(output_slices), "a slice is as wide as its B"
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if torch.compiler.is_compiling():
            torch.ops.heliotrope.add_lora(y, x, list(lora_a_stacked), list(lora_b_stacked), scale, self._number)
        else:
            self.add(y, x, lora_a_stacked, lora_b_stacked, scale)

    def add(self, y: Tensor, x: Tensor, a: Stacked, b: Stacked, scale: float) -> None:
        """As `add_lora_linear`, where it runs: what adapters a step uses is not known when the model is compiled."""
        if self._batch.slots:
            joined = self._layer(a, b)
            joined.add(y, x, scale, self._mask(joined.rows_per_slot, x))

    def _layer(self, a: Stacked, b: Stacked) -> Joined:
        """The layer is known by the address of its weights, which live as long as the layer and are kept here."""
        _, of_slots = self._joined.setdefault(a[0].data_ptr(), (a[0], OrderedDict()))
        slots = self._batch.slots
        joined = of_slots.get(slots)
        if joined is None or not joined.current:
            joined = of_slots[slots] = Joined(a, b, slots)
            while len(of_slots) > COMBINATIONS_KEPT:
                of_slots.popitem(last=False)
        of_slots.move_to_end(slots)
        return joined

    def _mask(self, rows_per_slot: int, x: Tensor) -> Tensor | None:
        own = self._batch.own
        if own is None:
            return None
        mask = self._masks.get(rows_per_slot)
        if mask is None:
            mask = self._masks[rows_per_slot] = own.repeat_interleave(rows_per_slot, dim=1).to(x.dtype)
        assert len(mask) == len(x), "vLLM's mapping names an adapter for each token"
        return mask


_of_this_process: list[SideBySide] = []


def _add_lora(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, number: int) -> None:
    """The step of a compiled model that stays in Python: which matrices it takes differs from batch to batch."""
    _of_this_process[number].add(y, x, tuple(a), tuple(b), scale)


def _add_lora_shapes(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, number: int) -> None:
    """What the compiler needs to know: nothing comes back, `y` is written."""


_library = torch.library.Library("heliotrope", "DEF")  # kept: the operation lives as long as it
_library.define("add_lora(Tensor(a!) y, Tensor x, Tensor[] a, Tensor[] b, float scale, int number) -> ()")
_library.impl("add_lora", _add_lora, "CPU")
torch.library.register_fake("heliotrope::add_lora", _add_lora_shapes, lib=_library)
