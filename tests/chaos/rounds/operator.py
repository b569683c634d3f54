"""The operator of one round, as a process: asks for it, agrees where somebody must, and goes home when it is over.

One that takes a killed one's place asks with the same Idempotency-Key, and so for the same round.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.chaos.rounds.door import Door
from tests.chaos.rounds.script import Kind

STUCK_SECONDS = 120.0  # in which a round that is not over is said to be stuck
_LOOK_SECONDS = 0.05
_LATEST_CANCEL_SECONDS = 4.0
_FINAL = {"promoted", "rejected", "failed", "cancelled"}
_ASKS = {"awaiting_approval", "canary"}  # whoever is in one of these may wait for an operator


@dataclass(frozen=True)
class OperatorPlan:
    port: int  # of the Conductor
    key: str
    kind: Kind
    request: str  # the Idempotency-Key
    after: int  # rounds there were before


class Stuck(Exception):
    """A round does not end, or does not begin."""


def attend(plan: OperatorPlan) -> None:
    """The process's whole life: until the round is over."""
    _Operator(plan).attend()


class _Operator:
    def __init__(self, plan: OperatorPlan) -> None:
        self._plan = plan
        self._door = Door(plan.port, plan.key)
        self._pause = threading.Event()  # never set: only waited for
        latest = random.Random(plan.request).uniform(0, _LATEST_CANCEL_SECONDS)
        self._cancels_at = time.monotonic() + latest if plan.kind.cancelled else None

    def attend(self) -> None:
        n = self._begun()
        until = time.monotonic() + STUCK_SECONDS
        while (round := self._get(f"/ops/rounds/{n}"))["state"] not in _FINAL:
            if time.monotonic() > until:
                raise Stuck(f"round {n} has been {round['state']} for long: {round['reason']}")
            if self._cancels_at is not None and time.monotonic() > self._cancels_at:
                self._decide(n, "cancel")
            elif round["state"] in _ASKS and self._is_asked(round):
                self._decide(n, "approve")
            self._pause.wait(_LOOK_SECONDS)

    def _begun(self) -> int:
        """The number of the round. One that a trigger has begun before runs first, and is looked after."""
        until = time.monotonic() + STUCK_SECONDS
        while time.monotonic() < until:
            newest = self._newest()
            if self._plan.kind.triggered and newest["n"] > self._plan.after:
                return newest["n"]
            if newest["state"] in _ASKS and self._is_asked(newest):
                self._decide(newest["n"], "approve")
            if not self._plan.kind.triggered:
                reply = self._door.call("POST", "/ops/rounds", {}, **{"idempotency-key": self._plan.request})
                if reply.status in (200, 202):
                    return reply.body["n"]
                assert reply.body["error"]["code"] == "round_running", reply
            self._pause.wait(_LOOK_SECONDS)
        raise Stuck(f"{self._plan.request} does not begin, the newest round is {self._newest()}")

    def _newest(self) -> dict[str, Any]:
        found = self._get("/ops/rounds?limit=1")["data"]
        return found[0] if found else {"n": 0, "state": None}

    def _is_asked(self, round: dict[str, Any]) -> bool:
        if round["state"] == "canary":
            return "an operator" in ((round["canary"] or {}).get("waits_for") or "")
        return round["state"] == "awaiting_approval" and round["approved_by"] is None

    def _decide(self, n: int, decision: str) -> None:
        """It may have been decided already by who was killed, or the round may have gone on."""
        reply = self._door.call("POST", f"/ops/rounds/{n}/{decision}", {})
        assert reply.status in (200, 409), reply

    def _get(self, path: str) -> dict[str, Any]:
        reply = self._door.call("GET", path)
        assert reply.status == 200, reply
        return reply.body
