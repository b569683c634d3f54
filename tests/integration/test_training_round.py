"""A round in a real Ray cluster: a detached actor, Ray Train's controller and its workers, to the adapter directory."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray._private.state import state as cluster

from tests import tiny_models
from tests.round_specs import round_spec
from training.adapter import read_adapter
from training.attempt import NAMESPACE, Attempts, actor_name
from training.contracts import HELD_OUT, TRAIN, AttemptStatus, LoraSpec, Progress, RoundReport, RoundSpec
from training.learn import learn
from training.round import RESTART
from training.snapshot import SnapshotRow
from training.worker import threads

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeSpec = Callable[..., RoundSpec]
ATTEMPTS = Attempts()
ROUNDS = count(1)
LONG = {"epochs": 100, "pairs_per_step": 1}  # nobody waits for its end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def make_spec(model: Path, tmp_path: Path) -> MakeSpec:
    """A round of its own number over 32 random pairs."""

    def make(**fields: Any) -> RoundSpec:
        draw = random.Random(0)

        def tokens(length: int) -> list[int]:
            return [draw.randrange(6, 300) for _ in range(length)]

        rows = [
            SnapshotRow(f"{i:04d}", HELD_OUT if i % 4 == 3 else TRAIN, tokens(12), tokens(8), tokens(9))
            for i in range(32)
        ]
        small = {"round": next(ROUNDS), "pairs_per_step": 8, "lora": LoraSpec(rank=4, alpha=8)}
        return round_spec(model, rows, tmp_path, **small | fields)

    return make


async def watch(
    spec: RoundSpec, enough: Callable[[AttemptStatus, list[Progress]], bool]
) -> tuple[AttemptStatus, list[Progress]]:
    """Poll as the Conductor does; the status that was enough, and all progress until then."""
    progress: list[Progress] = []
    while True:
        status = await ATTEMPTS.poll(spec, since=len(progress))
        progress += status.progress
        if enough(status, progress):
            return status, progress
        await asyncio.sleep(0.1)


def ended(status: AttemptStatus, _: list[Progress]) -> bool:
    return status.state != "running"


def stepping(status: AttemptStatus, progress: list[Progress]) -> bool:
    assert status.state == "running", status.failure
    return any(entry.kind == "step" for entry in progress)


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


async def given_back(idle: float) -> None:
    """Returns when as many CPUs are free as without an attempt."""
    while free_cpus() < idle:  # noqa: ASYNC110  Ray tells nobody when resources become free
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def idle(ray_cluster: object) -> float:
    """CPUs that are free while there is no attempt."""
    return free_cpus()


@pytest.fixture(autouse=True)
async def nothing_reserved(idle: float) -> None:
    """Ray tells of what the attempt before gave back a moment after that has ended: too late for who counts at once."""
    await given_back(idle)


def pid_of(actor_class: str) -> int:
    """Process id of the one living actor of a class."""
    (actor,) = (
        a for a in cluster.actor_table(None).values() if a["ActorClassName"] == actor_class and a["State"] == "ALIVE"
    )
    return actor["Pid"]


async def finish(spec: RoundSpec) -> tuple[RoundReport, list[Progress]]:
    await ATTEMPTS.start(spec)
    status, progress = await watch(spec, ended)
    assert status.state == "done", status.failure
    assert status.report is not None
    await ATTEMPTS.stop(spec)
    return status.report, progress


def alone(spec: RoundSpec, directory: Path) -> RoundReport:
    """The same round in this process, without Ray."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads(os.cpu_count() or 1))
    try:
        where = {name: str(directory / name) for name in ("out", "storage", "checkpoints")}
        return learn(spec.model_copy(update=where | {"workers": 1}), lambda progress: None)
    finally:
        torch.set_num_threads(before)


async def test_an_attempt_that_dies_before_its_first_word_is_absent_and_the_next_one_trains(
    make_spec: MakeSpec,
) -> None:
    spec = make_spec()
    killer = asyncio.create_task(_kill_at_once(spec))
    await ATTEMPTS.start(spec)
    await killer
    assert (await ATTEMPTS.poll(spec, since=0)).state == "absent"
    again = spec.model_copy(update={"attempt": spec.attempt + 1})
    await finish(again)


async def _kill_at_once(spec: RoundSpec) -> None:
    """As soon as the actor has its name; its process needs a second from then on until it answers."""
    while True:
        try:
            actor = await asyncio.to_thread(ray.get_actor, actor_name(spec), namespace=NAMESPACE)
            break
        except ValueError:
            await asyncio.sleep(0.001)
    ray.kill(actor)


async def test_a_round_is_watched_to_the_adapter_that_it_would_make_without_ray(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec()
    await ATTEMPTS.start(spec)
    report, progress = await finish(spec)  # starts again, as a Conductor does that was restarted
    assert (await ATTEMPTS.poll(spec, since=0)).state == "absent"
    assert report.step0_max_abs_logratio == 0.0
    phases = [entry.phase for entry in progress if entry.kind == "phase"]
    assert phases == ["load", "reference", "train", "evaluate", "write"]
    assert tuple(entry.step for entry in progress if entry.step) == report.steps
    manifest, _ = read_adapter(Path(spec.out) / "adapter")
    assert manifest.name == report.adapter_name
    assert report.adapter_digest == alone(spec, tmp_path / "alone").adapter_digest


async def test_nothing_but_workers_is_started_beside_an_attempt(make_spec: MakeSpec) -> None:
    """Ray Train's controller and the autoscaler's coordinator would each cost seconds before the first step."""
    before = set(cluster.actor_table(None))
    await finish(make_spec())
    started = [actor["ActorClassName"] for id, actor in cluster.actor_table(None).items() if id not in before]
    assert sorted(started) == ["Attempt", "RayTrainWorker", "SynchronizationActor"]


async def test_two_workers_make_the_steps_of_one(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(workers=2, tokens_per_micro_batch=64)
    report, _ = await finish(spec)
    assert report.step0_max_abs_logratio == 0.0
    for ours, theirs in zip(report.steps, alone(spec, tmp_path / "alone").steps, strict=True):
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


async def test_a_failure_is_told_in_one_line(make_spec: MakeSpec) -> None:
    spec = make_spec(pair_digest="0" * 64)
    await ATTEMPTS.start(spec)
    status, _ = await watch(spec, ended)
    assert status.state == "failed"
    assert status.failure is not None
    assert "instead of 000000000000" in status.failure
    assert "\n" not in status.failure
    assert not status.retryable  # the same snapshot would be refused again
    assert not (Path(spec.out) / "adapter").exists()
    await ATTEMPTS.stop(spec)


async def test_stopping_ends_the_workers_and_gives_back_what_they_reserved(make_spec: MakeSpec, idle: float) -> None:
    spec = make_spec(**LONG)
    await ATTEMPTS.start(spec)
    await watch(spec, stepping)
    while free_cpus() >= idle:  # noqa: ASYNC110  Ray tells of it a moment later
        await asyncio.sleep(0.1)
    worker = psutil.Process(pid_of("RayTrainWorker"))
    await ATTEMPTS.stop(spec)
    assert (await ATTEMPTS.poll(spec, since=0)).state == "absent"
    await given_back(idle)
    _, alive = await asyncio.to_thread(psutil.wait_procs, [worker], 60)  # it ends a moment after its reservation
    assert not alive
    assert not (Path(spec.out) / "adapter").exists()
    await ATTEMPTS.stop(spec)  # stopping what is absent is fine


async def test_an_attempt_whose_process_dies_is_absent_and_leaves_nothing_reserved(
    make_spec: MakeSpec, idle: float
) -> None:
    spec = make_spec(**LONG)
    await ATTEMPTS.start(spec)
    await watch(spec, stepping)
    os.kill(pid_of("Attempt"), signal.SIGKILL)
    await watch(spec, lambda status, _: status.state == "absent")
    await ATTEMPTS.stop(spec)
    await given_back(idle)


async def kill_a_worker(spec: RoundSpec, after_steps: int) -> None:
    """SIGKILL, once so many steps have been told."""
    await watch(spec, lambda _, progress: sum(entry.kind == "step" for entry in progress) >= after_steps)
    os.kill(pid_of("RayTrainWorker"), signal.SIGKILL)


async def test_a_worker_that_dies_is_started_again_and_the_adapter_is_the_same(
    make_spec: MakeSpec, tmp_path: Path, idle: float
) -> None:
    spec = make_spec(epochs=40, seconds_between_checkpoints=0)
    await ATTEMPTS.start(spec)
    await kill_a_worker(spec, after_steps=1)
    report, progress = await finish(spec)
    assert RESTART in [entry.phase for entry in progress]
    assert report.resumed_from is not None and report.resumed_from >= 1
    assert [step.step for step in report.steps] == list(range(1, 121))
    assert report.adapter_digest == alone(spec, tmp_path / "alone").adapter_digest
    await given_back(idle)


async def test_a_worker_that_dies_once_too_often_fails_the_attempt_with_its_reason(
    make_spec: MakeSpec, idle: float
) -> None:
    spec = make_spec(**LONG, restarts=0)
    await ATTEMPTS.start(spec)
    await kill_a_worker(spec, after_steps=1)
    status, _ = await watch(spec, ended)
    assert status.state == "failed"
    assert status.failure is not None
    assert "died" in status.failure
    assert status.retryable
    await ATTEMPTS.stop(spec)
    await given_back(idle)


async def test_a_base_that_is_sharded_over_two_workers_trains_as_a_whole_one(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(workers=2, shard_base=True, tokens_per_micro_batch=64)
    report, _ = await finish(spec)
    assert report.step0_max_abs_logratio == 0.0
    whole = alone(spec.model_copy(update={"shard_base": False}), tmp_path / "alone")
    for ours, theirs in zip(report.steps, whole.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
