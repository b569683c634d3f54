"""A round of training from the outside: starts Ray Train, waits, and answers with the report.

One thumbs-up in seven files: `service/rounds.py` decides that a round begins and writes the `RoundSpec`; here its
pairs become a new adapter; `service/gate` reads the `RoundReport` and says whether it may replace the old one.
Runs inside the attempt's actor (`attempt.py`); knows nothing of votes, verdicts or the store.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import BackendConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from training.contracts import Progress, RoundReport, RoundSpec
from training.errors import Interrupted, TrainingError
from training.folder import is_remote
from training.nodes import a_little_of
from training.worker import PROGRESS, train_loop

log = logging.getLogger(__name__)

RESTART = "restart"  # the phase that is told when workers have died and are started again

# Ray Train takes these from the environment only.
_RAY_TRAIN_SETTINGS = {
    # The controller looks for reports, and for the end, this often; its own 2 s would be most of a small round.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Another process to start, and of use only where nodes are taken away with notice.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def run_round(spec: RoundSpec, report: Callable[[Progress], None]) -> RoundReport:
    """Run one attempt to its end. `report` goes to the workers with the rest of the run, so it must be picklable.

    Workers that die are started again, `spec.restarts` times, and go on from the round's last checkpoint. Raises
    `TrainingError` with one line that names the cause, whichever process it arose in; `Interrupted` when the cause
    is not the input.
    """
    for name, value in _RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    for start in range(spec.restarts + 1):
        try:
            result = _trainer(spec, report, start).fit()
        except TrainingFailedError as error:
            cause = root(error)
            if isinstance(cause, TrainingError):
                raise TrainingError(reason(error)) from error
            if start == spec.restarts:
                raise Interrupted(reason(error)) from error
            log.warning("round %d, attempt %d: starting again: %s", spec.round, spec.attempt, reason(error))
            report(Progress(kind="phase", phase=RESTART))
        else:
            return RoundReport.model_validate(result.return_value)
    raise AssertionError("the last start either answers or raises")


def _trainer(spec: RoundSpec, report: Callable[[Progress], None], start: int) -> DataParallelTrainer:
    resources = {"CPU": 1.0, **({"GPU": 1.0} if spec.use_gpu else {}), **a_little_of(spec.node_resource)}
    return _Trainer(
        train_loop,
        train_loop_config=spec.model_dump(mode="json"),
        backend_config=_backend(spec.workers),
        scaling_config=ScalingConfig(num_workers=spec.workers, use_gpu=spec.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"round-{spec.round}-attempt-{spec.attempt}-start-{start}",
            **_storage(spec.storage),
            # Ray Train would also start again what can only fail again.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[_Forward(report)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _storage(url: str) -> dict[str, Any]:
    """Where Ray Train keeps its own few files; every node must reach them."""
    if not is_remote(url):
        return {"storage_path": url}
    files, path = fsspec.core.url_to_fs(url)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def _backend(workers: int) -> BackendConfig | None:
    """A process group where there is somebody to talk to.

    A worker on its own needs none, and without it this process imports no torch: seconds of a round's fixed cost.
    """
    if workers == 1:
        return None
    from ray.train.torch import TorchConfig

    return TorchConfig()


class _Trainer(DataParallelTrainer):
    """`TorchTrainer` (a `DataParallelTrainer` with a `TorchConfig`) without four helper processes.

    The placement group cleaner asks the dashboard, which need not run; `orphans.py` does its work here. The dataset
    manager has nothing to manage: the workers read the snapshot themselves. The controller runs in this process, which
    is an actor of its own already, and reserves the workers' places without the autoscaler's coordinator: each of the
    two would be started, with seconds of imports, before the first worker is.
    """

    def _initialize_and_run_controller(self, **made_of: Any) -> Result:
        made_of["scaling_policy"] = _Reserved(self.scaling_config)
        controller = TrainController(**made_of)
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        unused = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]


class _Reserved(FixedScalingPolicy):
    """As many workers as were asked for. The placement group that reserves them tells Ray's autoscaler what is missing."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """No coordinator is asked, so none is started."""

    def _maybe_send_resource_request(self) -> None: ...


class _Forward(UserCallback):
    """Passes on what the first worker reported; on several workers each reports the same."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for entry in metrics[0][PROGRESS]:
            self._report(Progress.model_validate(entry))


def reason(error: BaseException) -> str:
    """One line for the operator: the cause that Ray Train has wrapped up."""
    cause = root(error)
    lines = str(cause).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(cause, TrainingError) else f"{type(cause).__name__}: {lines[0]}"


def root(error: BaseException) -> BaseException:
    """What went wrong first; of several workers, one that says which promise of ours was broken."""
    if isinstance(error, WorkerGroupError):
        causes = [_innermost(failure) for failure in error.worker_failures.values()]
        return root(next((cause for cause in causes if isinstance(cause, TrainingError)), causes[0]))
    if isinstance(error, ControllerError):
        return root(error.controller_failure)
    return error


def _innermost(failure: BaseException) -> BaseException:
    """A worker's own exception; Ray Train keeps it inside one or two of its own."""
    for attribute in ("_base_exc", "health_check_failure"):
        inner = getattr(failure, attribute, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return failure
