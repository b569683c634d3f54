"""`/ops/status`: how the service is."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Depends

from service.api.auth import Doorman
from service.canary.state import CanaryState
from service.contracts import Key, Role, Round, RoundState
from service.rounds import Rounds
from service.store.store import Store
from serving.contracts import Roll
from serving.errors import HostError


class Replicas(Protocol):
    """What is asked of `serving.host.PolicyHost`."""

    async def roll(self) -> Roll: ...


def status_routes(store: Store, replicas: Replicas, rounds: Rounds, model: str, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/ops/status")
    async def status(key: Key = operator) -> dict[str, Any]:
        roll, trouble = await _roll(replicas)
        running = await store.rounds.running()
        return {
            "model": model,
            "route": await store.route.read(),
            "replicas": roll.answered,
            "silent": roll.silent,  # why each replica that is not listed does not answer
            "trouble": trouble,  # why nobody is listed; null: somebody is
            "running_round": running,
            "canary": None if running is None else _canary(running),
            "pause": await store.pauses.read(),  # null: rounds may start by themselves
            "funnel": await rounds.preview(),
        }

    return router


async def _roll(replicas: Replicas) -> tuple[Roll, str | None]:
    try:
        return await replicas.roll(), None
    except HostError as error:
        return Roll(answered=()), str(error)


def _canary(round: Round) -> dict[str, Any] | None:
    """Whom a candidate answers now, and what the next step waits for; None: no canary runs."""
    if round.state is not RoundState.CANARY:
        return None
    state = CanaryState.model_validate(round.canary)
    return {
        "candidate": state.candidate,
        "steps_begun": state.step,
        "share": None if state.now is None else state.now.share,
        "requests": state.requests,
        "held": state.held,
        "waits_for": state.waits_for,
    }
