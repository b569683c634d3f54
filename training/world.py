"""The workers that share one round: how many there are, which one this is, and how to add up over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """One worker's view."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those of the items that this worker computes."""
        return items[self.rank :: self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor added up over all workers, in place; the same bits on each of them."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


ALONE = World(0, 1, torch.device("cpu"))  # needs no process group
