"""A round of training from the outside: starts Ray Train, waits, and answers with the report.

One thumbs-up in seven files: `service/rounds.py` decides that a round begins and writes the `RoundSpec`; here its
pairs become a new adapter; `service/gate.py` reads the `RoundReport` and says whether it may replace the old one.
Runs inside the attempt's actor (`attempt.py`); knows nothing of votes, verdicts or the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from training.contracts import Progress, RoundReport, RoundSpec
from training.errors import TrainingError
from training.worker import PROGRESS, train_loop

# Ray Train takes these from the environment only.
_RAY_TRAIN_SETTINGS = {
    # The controller looks for reports, and for the end, this often; its own 2 s would be most of a small round.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Another process to start, and of use only where nodes are taken away with notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def run_round(spec: RoundSpec, report: Callable[[Progress], None]) -> RoundReport:
    """Run one attempt to its end. `report` is called in Ray Train's controller process, so it must be picklable.

    Raises `TrainingError` with one line that names the cause, whichever process it arose in.
    """
    for name, value in _RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    resources = {"CPU": 1.0, "GPU": 1.0} if spec.use_gpu else {"CPU": 1.0}
    trainer = _Trainer(
        train_loop,
        train_loop_config=spec.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=spec.workers, use_gpu=spec.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"round-{spec.round}-attempt-{spec.attempt}",
            storage_path=spec.storage,
            # The Conductor starts the next attempt; one that fails says so at once.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[_Forward(report)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(reason(error)) from error
    return RoundReport.model_validate(result.return_value)


class _Trainer(TorchTrainer):
    """Without Ray Train's cleaner process, which asks the dashboard and is of no use where none runs.

    It gives back what a killed run has reserved; `orphans.py` does that here.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]


class _Forward(UserCallback):
    """Passes on what the first worker reported; on several workers each reports the same."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for entry in metrics[0][PROGRESS]:
            self._report(Progress.model_validate(entry))


def reason(error: BaseException) -> str:
    """One line for the operator: the innermost cause that Ray Train has wrapped up."""
    if isinstance(error, WorkerGroupError):
        causes = [_innermost(failure) for failure in error.worker_failures.values()]
        return reason(next((cause for cause in causes if isinstance(cause, TrainingError)), causes[0]))
    if isinstance(error, ControllerError):
        return reason(error.controller_failure)
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, TrainingError) else f"{type(error).__name__}: {lines[0]}"


def _innermost(failure: BaseException) -> BaseException:
    """A worker's own exception; Ray Train keeps it inside one or two of its own."""
    for attribute in ("_base_exc", "health_check_failure"):
        inner = getattr(failure, attribute, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return failure
