"""Metrics arrive under TRL's names, and no tracker holds a round up or fails it."""

from __future__ import annotations

import importlib.util
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from tensorboardX.proto.event_pb2 import Event as Record  # pyright: ignore[reportAttributeAccessIssue]

from training.contracts import StepMetrics
from training.errors import TrainingError
from training.trackers import Aside, Together, by_name, open_trackers


def step_metrics() -> StepMetrics:
    return StepMetrics(
        step=2,
        steps=7,
        epoch=0.5,
        loss=0.75,
        rewards_chosen=0.125,
        rewards_rejected=None,
        rewards_margins=0.0,
        rewards_accuracies=None,
        logps_chosen=-31.0,
        logps_rejected=None,
        grad_norm=2.0,
        learning_rate=1e-4,
        seconds=3.0,
    )


class Written:
    """A tracker that remembers, and that fails at one step where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.logged, self.closed = fails_at, [], False

    def log(self, metrics: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.logged.append((step, metrics))

    def close(self) -> None:
        self.closed = True


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_steps_metrics_have_trls_names_and_nothing_that_is_absent() -> None:
    metrics = by_name(step_metrics())
    assert metrics["rewards/chosen"] == 0.125
    assert metrics["rewards/margins"] == 0.0
    assert metrics["logps/chosen"] == -31.0
    assert metrics["grad_norm"] == 2.0
    assert not {"rewards/rejected", "rewards/accuracies", "step", "steps"} & metrics.keys()
    assert all(type(value) is float for value in metrics.values())


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    tracker = open_trackers(["tensorboard"], tmp_path, "round-0003", {"beta": 0.1, "objective": "dpo+kto"})
    tracker.log(by_name(step_metrics()), 2)
    tracker.log({"loss": 0.5, "eval_loss": 0.625}, 3)
    tracker.close()
    (file,) = (tmp_path / "tensorboard" / "round-0003").iterdir()
    written = [(record.step, value) for record in records(file) for value in record.summary.value]
    scalars = {(value.tag, step): value.simple_value for step, value in written}
    assert (scalars["loss", 2], scalars["loss", 3], scalars["eval_loss", 3]) == (0.75, 0.5, 0.625)
    assert scalars["rewards/chosen", 2] == 0.125
    (settings,) = [value for _, value in written if value.tag.startswith("settings")]
    assert b'"objective": "dpo+kto"' in settings.tensor.string_val[0]


def records(file: Path) -> Iterator[Record]:
    """TensorFlow's record format: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    content = file.read_bytes()
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Record.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(TrainingError, match=f"pip install {name}"):
        open_trackers(["tensorboard", name], tmp_path / "round", "round-1", {})
    assert not (tmp_path / "round").exists()


def test_no_trackers_are_a_tracker_too(tmp_path: Path) -> None:
    tracker = open_trackers([], tmp_path, "round-1", {})
    tracker.log({"loss": 1.0}, 1)
    tracker.close()


def test_everything_is_passed_on_in_order_before_close_returns() -> None:
    first, second = Written(), Written()
    tracker = Together([Aside("first", lambda: first), Aside("second", lambda: second)])
    for step in range(1, 101):
        tracker.log({"loss": 1 / step}, step)
    tracker.close()
    assert first.logged == second.logged == [(step, {"loss": 1 / step}) for step in range(1, 101)]
    assert first.closed and second.closed


def test_what_the_caller_does_with_its_dictionary_afterwards_is_not_logged() -> None:
    written, metrics = Written(), {"loss": 1.0}
    opened = Event()

    def open() -> Written:
        opened.wait()
        return written

    tracker = Aside("written", open)
    tracker.log(metrics, 1)
    metrics["loss"] = 2.0
    opened.set()
    tracker.close()
    assert written.logged == [(1, {"loss": 1.0})]


def test_a_tracker_that_fails_is_warned_about_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, sound = Written(fails_at=2), Written()
    tracker = Together([Aside("failing", lambda: failing), Aside("sound", lambda: sound)])
    for step in range(1, 6):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    assert [step for step, _ in failing.logged] == [1]
    assert [step for step, _ in sound.logged] == [1, 2, 3, 4, 5]
    assert warnings_of(caplog) == [
        "the tracker failing has failed and is dropped; the round goes on: the server is gone"
    ]


def test_a_tracker_that_cannot_be_opened_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    def open() -> Written:
        raise PermissionError("no API key")

    tracker = Aside("locked", open)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert warnings_of(caplog) == ["the tracker locked has failed and is dropped; the round goes on: no API key"]


def test_a_tracker_that_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    released, written = Event(), Written()

    def open() -> Written:
        released.wait()
        return written

    tracker = Aside("hanging", open, seconds_to_close=0)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert written.logged == []
    assert len(warnings_of(caplog)) == 1
    assert "hanging was given up" in warnings_of(caplog)[0]
    released.set()
