"""Lanes: the threads of one worker, each with micro-batches of its own.

Two threads that share each matrix product wait for each other after every one of the small ones between; two threads
with a micro-batch each wait once a step, and other work on the same cores delays one of them and not both. Results come
in the order of their micro-batches, so sums have the same bits whichever lane was quicker. Knows no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from training.plan import MicroBatch, Step
from training.world import World

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING_PER_LANE = 2  # micro-batches that are begun or asked for: enough that no lane runs dry


class Lanes:
    """One lane is the calling thread itself."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, count: int = 1) -> None:
        self._pool = pool
        self.count = count

    def map(self, compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`compute` of each item, in their order; of endless items too. It sets its own gradient mode: that belongs
        to a thread."""
        if self._pool is None:
            yield from map(compute, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(compute, item))
                if len(waiting) > _WAITING_PER_LANE * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


ONE_LANE = Lanes()


def share_out(
    steps: Iterable[Step], compute: Callable[[Step, MicroBatch], Result], world: World, lanes: Lanes
) -> Iterator[tuple[MicroBatch, Result]]:
    """This worker's micro-batches of the steps, each with what `compute` makes of it, in their order.

    Lanes go on from step to step without waiting for each other. What is computed only to keep other workers company
    is left out.
    """
    shares = ((step, batch, counts) for step in steps for batch, counts in world.share(step.micro_batches))

    def of_share(share: tuple[Step, MicroBatch, bool]) -> tuple[MicroBatch, bool, Result]:
        step, batch, counts = share
        return batch, counts, compute(step, batch)

    return ((batch, found) for batch, counts, found in lanes.map(of_share, shares) if counts)


@contextmanager
def open_lanes(device: torch.device, *, sharded: bool) -> Iterator[Lanes]:
    """As many as this process has threads on a CPU; one where the model is on a GPU, or is gathered layer by layer."""
    count = 1 if sharded or device.type != "cpu" else torch.get_num_threads()
    if count == 1:
        yield ONE_LANE
        return
    with ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield Lanes(pool, count)
