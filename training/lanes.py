"""Lanes: the threads of one worker, each with micro-batches of its own.

Two threads that share each matrix product wait for each other after every one of the small ones between; two threads
with a micro-batch each wait once a step, and other work on the same cores delays one of them and not both. Results come
in the order of their micro-batches, so sums have the same bits whichever lane was quicker. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """One lane is the calling thread itself."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, count: int = 1) -> None:
        self._pool = pool
        self.count = count

    def map(self, compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`compute` of each item, in their order. It sets its own gradient mode: that belongs to a thread."""
        return map(compute, items) if self._pool is None else self._pool.map(compute, items)


ONE_LANE = Lanes()


@contextmanager
def open_lanes(device: torch.device, *, sharded: bool) -> Iterator[Lanes]:
    """As many as this process has threads on a CPU; one where the model is on a GPU, or is gathered layer by layer."""
    count = 1 if sharded or device.type != "cpu" else torch.get_num_threads()
    if count == 1:
        yield ONE_LANE
        return
    with ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield Lanes(pool, count)
