"""Trackers: where a round's metrics go besides its events, so that rounds can be compared in the field's own tools.

TensorBoard's files are always possible; MLflow and Weights & Biases where somebody has installed them. How to reach
those two is theirs to say, in their own environment variables (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`,
`WANDB_MODE`, `WANDB_PROJECT`, `WANDB_API_KEY`, ...). Knows names and numbers; knows nothing of how they came about.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from training.contracts import StepMetrics
from training.errors import TrainingError

SECONDS_TO_CLOSE = 30.0

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives numbers by name."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: Sequence[str], directory: Path, run_name: str, settings: dict[str, Any]) -> Tracker:
    """One tracker that passes everything on to those named: `tensorboard`, `mlflow`, `wandb`.

    `settings` are shown beside the run; what the tools keep locally comes into the directory. None of them can hold
    the round up or fail it from here on. Raises `TrainingError` naming the package of one that is not installed.
    """
    for name in names:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise TrainingError(f"the tracker {name!r} needs the package {package}: pip install {package}")
    if names:
        directory.mkdir(parents=True, exist_ok=True)
    return Together([Aside(name, partial(_OPENERS[name], directory, run_name, settings)) for name in names])


def by_name(metrics: StepMetrics) -> dict[str, float]:
    """A step's metrics under TRL's names, without those that the step has nothing to say about."""
    values = metrics.model_dump(by_alias=True, exclude_none=True, exclude={"step", "steps"})
    return {name: float(value) for name, value in values.items()}


class Together:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, metrics: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class Aside:
    """A tracker in a thread of its own, which neither holds the round up nor fails it.

    MLflow tries for four minutes before it says that its server is not there. At the first exception, opening
    included, the tracker is warned about and dropped.
    """

    def __init__(self, name: str, open: Callable[[], Tracker], seconds_to_close: float = SECONDS_TO_CLOSE) -> None:
        self._name, self._seconds_to_close = name, seconds_to_close
        self._waiting: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()  # None: close
        # A daemon, so that a process whose round is over does not live on for a tracker that hangs.
        self._thread = Thread(target=self._run, args=(open,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self._thread.is_alive():  # else it was dropped
            self._waiting.put((dict(metrics), step))

    def close(self) -> None:
        """Wait until everything has been passed on, but not for ever."""
        self._waiting.put(None)
        self._thread.join(self._seconds_to_close)
        if self._thread.is_alive():
            logger.warning(
                "the tracker %s was given up: it did not finish in %g s, so its last metrics may be missing",
                self._name,
                self._seconds_to_close,
            )

    def _run(self, open: Callable[[], Tracker]) -> None:
        try:
            tracker = open()
            while (waiting := self._waiting.get()) is not None:
                tracker.log(*waiting)
            tracker.close()
        except Exception as error:  # whatever goes wrong in a tracker is no reason to lose a round
            logger.warning("the tracker %s has failed and is dropped; the round goes on: %s", self._name, error)


class TensorBoard:
    """Event files below `tensorboard/` in the directory, one run a sub-directory: `tensorboard --logdir` reads them."""

    def __init__(self, directory: Path, run_name: str, settings: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter  # takes a second or two, as the others do

        self._writer = SummaryWriter(str(directory / "tensorboard" / run_name))
        table = json.dumps(dict(settings), indent=2, sort_keys=True, default=str)
        self._writer.add_text("settings", f"```json\n{table}\n```", 0)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run on the MLflow server; where none is named, in `mlflow.db` in the directory."""

    def __init__(self, directory: Path, run_name: str, settings: Mapping[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        if not mlflow.is_tracking_uri_set():  # its own default is the directory the process happens to run in
            mlflow.set_tracking_uri(f"sqlite:///{directory.resolve() / 'mlflow.db'}")
        self._mlflow = mlflow
        mlflow.start_run(run_name=run_name)
        mlflow.log_params(dict(settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run on Weights & Biases; its local files are below `wandb/` in the directory, unless `WANDB_DIR` is set."""

    def __init__(self, directory: Path, run_name: str, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        local = os.environ.get("WANDB_DIR", str(directory))
        self._run = wandb.init(name=run_name, dir=local, config=dict(settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_OPENERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
