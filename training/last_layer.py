"""The last layer, computed only where the head looks: the rest of its output would be thrown away.

Keys and values of the last layer are needed of every token; what comes after them, the output projection and the MLP,
only at positions that predict an answer's token. Of a shallow model or of long prompts that is some percent of a step.
Knows the two modules by name; a model that calls them otherwise is computed in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class _Look:
    positions: Tensor  # [positions], different indices into the flattened [rows * tokens]
    shape: tuple[int, ...] = ()  # of what a module was given in full


_look: ContextVar[_Look | None] = ContextVar("look", default=None)  # each thread has its own


class LastLayer:
    """Hooks on the last layer of a decoder; without effect except inside of `only_at`."""

    def __init__(self, decoder: nn.Module) -> None:
        layers: Any = getattr(decoder, "layers", None)
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            if layers is None or not _has(layers[-1], path):
                return
        for module in (layers[-1].self_attn.o_proj, layers[-1].mlp):
            module.register_forward_pre_hook(self._select)
            module.register_forward_hook(self._spread)

    def _select(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        look = _look.get()
        if look is None:
            return None
        look.shape = args[0].shape
        return (args[0].flatten(0, 1).index_select(0, look.positions)[None],)

    def _spread(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        look = _look.get()
        if look is None:
            return None
        rows, tokens, _ = look.shape
        whole = output.new_zeros(rows * tokens, output.shape[-1])
        return whole.index_copy(0, look.positions, output[0]).view(rows, tokens, -1)


@contextmanager
def only_at(positions: Tensor | None) -> Iterator[None]:
    """Until the context ends, these positions alone get their right output, and others one nobody may use.

    None: all of them do.
    """
    token = _look.set(None if positions is None else _Look(positions))
    try:
        yield
    finally:
        _look.reset(token)


def looked_at() -> Tensor | None:
    """The positions of the innermost `only_at`."""
    look = _look.get()
    return look and look.positions


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
