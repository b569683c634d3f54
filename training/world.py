"""The workers that share one round: how many there are, which one this is, and how to add up over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def share(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """Those of the items that this worker computes, as many on each worker, and whether they count.

        Workers that hold a sharded model must call it equally often: one that has run out of items repeats the first
        and throws the result away.
        """
        for start in range(0, len(items), self.size):
            counts = start + self.rank < len(items)
            yield items[start + self.rank if counts else 0], counts

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor added up over all workers, in place; the same bits on each of them."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def from_first(self, value: Item) -> Item:
        """The first worker's value, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


ALONE = World(0, 1, torch.device("cpu"))  # needs no process group
