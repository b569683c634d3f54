"""One Ray Train worker: settles its process, calls `learn`, and hands progress to Ray Train.

Imports torch and the model libraries only inside the worker, so that whoever starts a round need not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray.train

from training.contracts import Progress, RoundSpec
from training.process import importing, settle

if TYPE_CHECKING:
    import torch

PROGRESS = "progress"  # the one key of a reported metrics dictionary

_NICENESS = 10  # on a CPU, so that chat keeps the cores
_SECONDS_BETWEEN_REPORTS = 0.5


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on each worker. `config` is a `RoundSpec` and the answer a `RoundReport`, both as JSON."""
    spec = RoundSpec.model_validate(config)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs every report through the root logger
    if not spec.use_gpu:
        os.nice(_NICENESS)
    with importing():
        settle(threads(os.cpu_count() or 1), on_gpu=spec.use_gpu)

        from training.assess import assess
        from training.learn import learn
        from training.places import at_hand, hand_back
        from training.world import World

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), _device(spec.use_gpu))
    act = learn if spec.candidate is None else assess
    with at_hand(spec) as here:
        report = act(here, Reports(ray.train.report), world)
        return hand_back(report, here, spec, upload=world.is_first).model_dump(mode="json")


def _device(use_gpu: bool) -> torch.device:
    import torch

    if not use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def threads(cpus: int) -> int:
    """How many threads a worker computes with: half the cores, because the other half answers chats.

    A number of its own and not the load of the moment: it changes the order of additions and so the adapter's digest.
    """
    return max(1, cpus // 2)


class Reports:
    """Progress on its way to the controller, a few entries a report.

    A report waits until the controller has fetched the one before, so one report a step would make short steps as
    slow as the controller polls. When to send follows from the entries alone: on several workers each must report
    equally often, and the entries are the same on all of them.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._waiting: list[Progress] = []
        self._sent_at_seconds = float("-inf")  # on the clock of the steps

    def __call__(self, progress: Progress) -> None:
        self._waiting.append(progress)
        step = progress.step
        if step is not None and step.seconds - self._sent_at_seconds < _SECONDS_BETWEEN_REPORTS:
            return
        if step is not None:
            self._sent_at_seconds = step.seconds
        self._send({PROGRESS: [entry.model_dump(mode="json") for entry in self._waiting]})
        self._waiting.clear()
