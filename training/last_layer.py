"""The last layer, computed only where the head looks: the rest of its output would be thrown away.

Keys and values of the last layer are needed of every token; what comes after them, the output projection and the MLP,
only at positions that predict an answer's token. Of a shallow model or of long prompts that is some percent of a step.
Knows the two modules by name; a model that calls them otherwise is computed in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LastLayer:
    """Hooks on the last layer of a decoder; without effect except inside of `only_at`."""

    def __init__(self, decoder: nn.Module) -> None:
        self.positions: Tensor | None = None  # [positions], different indices into the flattened [rows * tokens]
        self._shape = torch.Size()
        layers: Any = getattr(decoder, "layers", None)
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            if layers is None or not _has(layers[-1], path):
                return
        for module in (layers[-1].self_attn.o_proj, layers[-1].mlp):
            module.register_forward_pre_hook(self._select)
            module.register_forward_hook(self._spread)

    @contextmanager
    def only_at(self, positions: Tensor | None) -> Iterator[None]:
        """Until the context ends, these positions alone get their right output, and others one nobody may use.

        None: all of them do.
        """
        self.positions = positions
        try:
            yield
        finally:
            self.positions = None

    def _select(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.positions is None:
            return None
        self._shape = args[0].shape
        return (args[0].flatten(0, 1).index_select(0, self.positions)[None],)

    def _spread(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        rows, tokens, _ = self._shape
        whole = output.new_zeros(rows * tokens, output.shape[-1])
        return whole.index_copy(0, self.positions, output[0]).view(rows, tokens, -1)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
