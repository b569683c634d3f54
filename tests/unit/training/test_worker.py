"""What a worker tells Ray Train, and what an operator is told of a failure."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from training.contracts import Progress, StepMetrics
from training.errors import NotFinite
from training.process import importing
from training.round import reason
from training.worker import Reports, threads


def step(number: int, seconds: float) -> Progress:
    figures = dict.fromkeys(StepMetrics.model_fields, 0)
    return Progress(
        kind="step", step=StepMetrics.model_validate(figures | {"step": number, "steps": 9, "seconds": seconds})
    )


def test_short_steps_are_reported_together_and_nothing_is_lost_or_reordered() -> None:
    sent: list[dict[str, Any]] = []
    report = Reports(sent.append)
    told = [
        Progress(kind="phase", phase="train"),
        step(1, 0.0),
        step(2, 0.2),
        step(3, 0.4),
        step(4, 0.6),
        step(5, 0.7),
        Progress(kind="phase", phase="write"),
    ]
    for entry in told:
        report(entry)
    batches = [[Progress.model_validate(entry) for entry in metrics["progress"]] for metrics in sent]
    assert [len(batch) for batch in batches] == [1, 1, 3, 2]
    assert [entry for batch in batches for entry in batch] == told


def test_imports_are_not_searched_for_garbage_and_all_else_is() -> None:
    def missing() -> None:
        assert not gc.isenabled()
        raise ImportError

    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        missing()
    assert gc.isenabled()
    gc.unfreeze()


def test_half_the_cores_are_left_to_the_chats() -> None:
    assert [threads(cpus) for cpus in (1, 2, 3, 8)] == [1, 1, 1, 4]


def test_the_reason_is_the_training_error_of_whichever_worker_had_one() -> None:
    first = UserExceptionWithTraceback(RuntimeError("connection reset by peer"), "Traceback ...")
    second = UserExceptionWithTraceback(NotFinite("step 3: loss nan"), "Traceback ...")
    assert reason(WorkerGroupError("two workers", {0: first, 1: second})) == "step 3: loss nan"


def test_the_reason_of_anything_else_is_one_line_with_its_type() -> None:
    crash = UserExceptionWithTraceback(ValueError("first line\nsecond line"), "Traceback ...")
    assert reason(WorkerGroupError("", {0: crash})) == "ValueError: first line"
    dead = WorkerHealthCheckFailedError("a worker", ConnectionError("the worker died"))
    assert reason(WorkerGroupError("", {0: dead})) == "ConnectionError: the worker died"
    assert reason(ControllerError(TimeoutError("no resources"))) == "TimeoutError: no resources"
    assert reason(KeyError()) == "KeyError: no message"
