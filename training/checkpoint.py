"""Checkpoints: how far a round has come, in files that outlive the process that wrote them.

Adapter, optimiser moments and metrics after a step; all else follows from the spec. The two latest are kept, each
under a name that holds the digest of its bytes: a file that was damaged, or that belongs to another round's settings,
is passed over for the one before. On a CPU a round that went on from one ends with the very same adapter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from training.contracts import StepMetrics
from training.files import safetensors_metadata
from training.folder import Folder
from training.metrics import History
from training.policy import Policy
from training.steps import Descent, Position
from training.world import World

logger = logging.getLogger(__name__)

KEPT = 2
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.safetensors")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


@dataclass(frozen=True)
class Checkpoints:
    """Those of one round, in one folder. `identity` stands for all that the steps depend on."""

    folder: Folder
    identity: str

    def save(self, policy: Policy, descent: Descent) -> None:
        """Write one, complete or not at all, and remove those that are not needed any more."""
        content = save(_tensors(policy, descent), {"identity": self.identity, "position": _written(descent.position)})
        digest = hashlib.sha256(content).hexdigest()
        self.folder.write(f"step-{descent.position.done:08d}-{digest[:16]}.safetensors", content)
        for old in self._newest_first()[KEPT:]:
            self.folder.remove(old)

    def restore(self, policy: Policy, descent: Descent, world: World) -> int | None:
        """Go on from the latest one that is sound; its step, or None where there is none.

        The first worker decides and tells the others, so that they all go on from the same.
        """
        content = world.from_first(self._latest() if world.is_first else None)
        if content is None:
            return None
        _restore(load(content), policy, descent)
        descent.position = _read(safetensors_metadata(content)["position"])
        return descent.position.done

    def remove(self) -> None:
        """Forget them all, once the adapter is written."""
        for name in self._newest_first():
            self.folder.remove(name)
        self.folder.tidy()

    def _newest_first(self) -> list[str]:
        return sorted(filter(_NAME.fullmatch, self.folder.names()), reverse=True)

    def _latest(self) -> bytes | None:
        """The newest that can be used. Those that cannot are removed, or they would count among the latest for good."""
        for name in self._newest_first():
            content, parts = self.folder.read(name), _NAME.fullmatch(name)
            assert parts is not None
            if content is None or hashlib.sha256(content).hexdigest()[:16] != parts[2]:
                logger.warning("%s is damaged; the checkpoint before it is used", name)
            elif safetensors_metadata(content)["identity"] != self.identity:
                logger.warning("%s belongs to other pairs, settings or another machine, and is not used", name)
            else:
                return content
            self.folder.remove(name)
        return None


def _tensors(policy: Policy, descent: Descent) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in policy.named_parameters.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = descent.optimizer.state[parameter][moment].cpu()
    return tensors


def _restore(tensors: dict[str, Tensor], policy: Policy, descent: Descent) -> None:
    with torch.no_grad():
        for name, parameter in policy.named_parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            descent.optimizer.state[parameter] = {
                # AdamW keeps its count of steps on the CPU
                moment: tensors[f"{moment}/{name}"].to("cpu" if moment == "step" else parameter.device)
                for moment in _MOMENTS
            }


def _written(position: Position) -> str:
    values = {name: value for name, value in vars(position).items() if name != "history"}
    return json.dumps(values | {"history": [step.model_dump(mode="json") for step in position.history.steps]})


def _read(text: str) -> Position:
    values = json.loads(text)
    history = History([StepMetrics.model_validate(step) for step in values.pop("history")])
    return Position(**values, history=history)
