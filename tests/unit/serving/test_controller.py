"""What is made of the answer of Serve's controller, of its silence and of its end. `FakeController` stands in for the actor."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError

from serving.controller import Controller
from serving.errors import HostAbsent


class FakeController:
    """A handle of an actor: its methods have a `remote` that is awaited."""

    def __init__(self, *states: str, deployments: bool = True) -> None:
        policy = {"Policy": {"replicas": [{"state": state} for state in states]}}
        self.details = {"applications": {"chat": {"deployments": policy}} if deployments else {}}
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.get_serve_instance_details = self

    async def remote(self) -> dict[str, Any]:
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.details


def asking(*found: FakeController) -> Controller:
    """Who looks for the controller finds these, one after the other."""
    rest = iter(found)
    return Controller(0.05, lambda: next(rest))


async def test_those_that_run_are_counted() -> None:
    controller = asking(FakeController("RUNNING", "STARTING", "RUNNING", "STOPPING"))
    assert await controller.running() == 2
    assert await controller.running() == 2


@pytest.mark.parametrize(
    ("fake", "why"),
    [
        pytest.param(lambda: FakeController(deployments=False), "no replica runs yet", id="nothing was deployed"),
        pytest.param(lambda: FakeController("STARTING"), "no replica runs at the moment", id="none runs"),
    ],
)
async def test_where_none_runs_there_is_nobody_to_ask(fake: Any, why: str) -> None:
    with pytest.raises(HostAbsent, match=why):
        await asking(fake()).running()


async def test_a_silent_controller_is_waited_for_no_longer_than_patience_lasts() -> None:
    fake = FakeController("RUNNING")
    fake.answers.clear()
    controller = asking(fake)
    with pytest.raises(HostAbsent, match=r"TimeoutError.*the head of the Ray cluster is away or busy"):
        await controller.running()
    fake.answers.set()
    assert await controller.running() == 1


async def test_only_one_thread_waits_for_a_head_that_is_away() -> None:
    back, looked = threading.Event(), 0

    def find() -> FakeController:
        nonlocal looked
        looked += 1
        back.wait()
        return FakeController("RUNNING")

    controller = Controller(0.02, find)
    for _ in range(3):
        with pytest.raises(HostAbsent, match="TimeoutError"):
            await controller.running()
    back.set()
    assert looked == 1


async def test_a_controller_that_died_is_looked_for_again_and_one_that_is_away_is_not() -> None:
    first, second = FakeController("RUNNING"), FakeController("RUNNING", "RUNNING")
    controller = asking(first, second)
    first.error = ActorUnavailableError("away", None)
    with pytest.raises(HostAbsent, match="ActorUnavailableError"):
        await controller.running()
    first.error = ActorDiedError()
    with pytest.raises(HostAbsent, match="ActorDiedError"):
        await controller.running()
    assert await controller.running() == 2


@pytest.mark.parametrize("failure", [ValueError("no actor of that name"), RaySystemError("the head is away")])
async def test_a_search_that_failed_is_begun_anew(failure: Exception) -> None:
    found = [FakeController("RUNNING")]

    def find() -> FakeController:
        if looked.is_set():
            return found[0]
        looked.set()
        raise failure

    looked = threading.Event()
    controller = Controller(1.0, find)
    with pytest.raises(HostAbsent, match=type(failure).__name__):
        await controller.running()
    assert await controller.running() == 1
