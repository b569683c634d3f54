"""An attempt of a round as a named, detached actor: it outlives whoever started it and can be found again.

`Attempts` is the Conductor's side and loads neither torch nor Ray Train; `Attempt` is the actor, which starts the
round and keeps its progress and its report until they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from training import orphans
from training.contracts import AttemptStatus, Progress, RoundReport, RoundSpec
from training.errors import Interrupted, TrainingError
from training.nodes import a_little_of

NAMESPACE = "heliotrope"

_SECONDS_TO_DIE = 30.0
_SECONDS_BETWEEN_LOOKS = 0.05


class Attempts:
    """Starts, watches and ends attempts, from any process of the Ray cluster."""

    async def start(self, spec: RoundSpec) -> None:
        """Make sure that the attempt runs. Does nothing when it runs already, or has ended and was not stopped.

        One whose process dies at once is absent when it is polled, as one that dies later.
        """
        await asyncio.to_thread(orphans.release)
        remote: Any = ray.remote(num_cpus=0, concurrency_groups={"training": 1})(Attempt)  # pyright: ignore
        actor = remote.options(
            name=actor_name(spec), namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
            resources=a_little_of(spec.node_resource),
        ).remote(spec)  # fmt: skip
        actor.train.remote()  # its end shows in the status
        with contextlib.suppress(RayActorError):
            await actor.status.remote(0)

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus:
        """State, and the progress from position `since` on. Absent: never started, stopped, or its process died."""
        actor = await asyncio.to_thread(_find, spec)
        if actor is None:
            return AttemptStatus(state="absent")
        try:
            return await actor.status.remote(since)  # pyright: ignore[reportGeneralTypeIssues]
        except RayActorError:
            return AttemptStatus(state="absent")

    async def stop(self, spec: RoundSpec) -> None:
        """End the attempt and its Ray Train run, whatever their state, and give back what they have reserved.

        Also the way to dismiss an attempt whose report has been taken, or whose process died. Fine when it is absent.
        Raises `TrainingError` when something of it is still alive after 30 seconds.
        """
        await asyncio.to_thread(_stop, spec)


class Attempt:
    """The actor. One thread waits for Ray Train, in a group of its own; another takes notes and answers questions."""

    def __init__(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._began = False
        self._progress: list[Progress] = []
        self._report: RoundReport | None = None
        self._failure: str | None = None
        self._retryable = False

    @ray.method(concurrency_group="training")
    def train(self) -> None:
        if self._began:
            return
        self._began = True
        from training.round import reason, run_round  # loads Ray Train: seconds that only this process should pay

        try:
            self._report = run_round(self._spec, _Note(ray.get_runtime_context().current_actor))
        except Exception as error:  # whatever it is, the Conductor must hear of it
            self._failure = reason(error)
            self._retryable = isinstance(error, Interrupted) or not isinstance(error, TrainingError)

    def note(self, progress: Progress) -> None:
        self._progress.append(progress)

    def status(self, since: int) -> AttemptStatus:
        new = tuple(self._progress[since:])
        if self._failure is not None:
            return AttemptStatus(state="failed", progress=new, failure=self._failure, retryable=self._retryable)
        return AttemptStatus(state="done" if self._report else "running", progress=new, report=self._report)


@dataclass(frozen=True)
class _Note:
    """Carries progress from the thread of Ray Train's controller to that of the notes, and waits until it is there."""

    attempt: ActorHandle[Any]

    def __call__(self, progress: Progress) -> None:
        ray.get(self.attempt.note.remote(progress))


def actor_name(spec: RoundSpec) -> str:
    return f"heliotrope-round-{spec.round}-attempt-{spec.attempt}"


def _find(spec: RoundSpec) -> ActorHandle[Any] | None:
    try:
        return ray.get_actor(actor_name(spec), namespace=NAMESPACE)
    except ValueError:
        return None


def _stop(spec: RoundSpec) -> None:
    actor = _find(spec)
    if actor is not None:
        family = [actor._actor_id.hex(), *orphans.descendants(actor._actor_id.hex())]
        ray.kill(actor)  # the actors it started follow their owner
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while orphans.any_alive(family):
            if time.monotonic() > deadline:
                raise TrainingError(f"{actor_name(spec)} was told to end and is still alive")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    orphans.release()
