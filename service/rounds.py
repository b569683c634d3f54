"""The loop: takes the one running round from state to state until it is final. A state machine over ports.

Third of the seven files of a thumbs-up: `service/preferences.py` made the pairs, `training/round.py` learns from
them, and back here `service/gate` is asked. What is done in each state is in `steps.py`, and can be repeated. A
Conductor that dies in the middle is replaced by one that does the same step again; a stale attempt is fenced off by
its number.

    queued -> collecting -> training -> judging -+-> awaiting_approval -+-> canary -+-> promoted -> (watched)
                                                 +-> -------------------+-> --------+
    any of them -> failed, cancelled         judging, awaiting_approval, canary -> rejected
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.attempts import AttemptsOfRound, Trainer
from service.canary.rollout import Rollout
from service.canary.state import CanaryState
from service.canary.watching import Watch
from service.collecting import Collector
from service.contracts import Candidate, Round, RoundBody, RoundState
from service.digest import content_digest
from service.errors import Conflict, HeliotropeError
from service.overview import Overview
from service.pairs import Funnel
from service.registry import Registry
from service.settings import Settings
from service.specs import Specs
from service.steps import Steps
from service.store.round_rows import StaleRound
from service.store.store import Store
from service.tuning import chosen
from training.contracts import Fingerprints

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between looks at the store while there is nothing to do
POLL_SECONDS = 0.3  # between looks at a running attempt
LOOK_SECONDS = 2.0  # between looks at a canary, and at what is watched
LOOK_REST = 4  # times as long as a look took nobody looks: it counts what very many people were answered


class Rounds:
    """One per service, in the Conductor."""

    def __init__(
        self,
        store: Store,
        trainer: Trainer,
        registry: Registry,
        settings: Settings,
        model: Path,
        fingerprints: Fingerprints,
        *,
        use_gpu: bool,
    ) -> None:
        self._store = store
        self._settings = settings
        self.collector = Collector(store, settings)
        self.overview = Overview(self.collector, store, settings)
        self._rollout = Rollout(store, registry, settings)
        self._watch = Watch(store, registry, settings.watch, settings.canary)
        specs = Specs(settings, model, fingerprints, use_gpu)
        self._attempts = AttemptsOfRound(store, trainer, specs, settings.training.max_attempts)
        self._steps = Steps(store, registry, settings, self.collector, self._attempts, self._rollout)

    # --- what operators ask for ---------------------------------------------------------------------

    async def start(self, body: RoundBody, *, who: str, idempotency_key: str | None) -> tuple[Round, bool]:
        """Queue a round; the second value is False when the key had already queued it. Raises `Conflict`."""
        return await self._store.rounds.create(
            settings=chosen(body, self._settings.round_defaults),
            requested_by=who,
            note=body.note,
            idempotency_key=idempotency_key,
            body_sha256=content_digest(body.model_dump(mode="json")),
        )

    async def add(
        self, candidate: Candidate, *, who: str, note: str | None, idempotency_key: str | None
    ) -> tuple[Round, bool]:
        """Queue a round that measures and judges an adapter from outside, and trains none. Raises `Conflict`."""
        body = {"weights": candidate.weights_sha256, "assumed_base": candidate.assumed_base, "note": note}
        return await self._store.rounds.create(
            settings=self._settings.round_defaults,
            requested_by=who,
            note=note,
            idempotency_key=idempotency_key,
            body_sha256=content_digest(body),
            candidate=candidate,
        )

    async def preview(self, objective: str | None = None) -> Funnel:
        """What a round started now would use and leave out; at once, so the newest votes may not be in it yet."""
        return (await self.overview.read(objective)).funnel

    async def cancel(self, n: int, *, who: str) -> Round:
        """In any state. Raises `NotFound`, and `Conflict` for a round that is over or whose adapter answers already."""
        return await self._stop(n, RoundState.CANCELLED, who=who, reason=f"cancelled by {who}")

    async def reject(self, n: int, *, who: str, reason: str | None) -> Round:
        """An operator turns down a candidate that the gate let pass. Raises `NotFound` and `Conflict`."""
        self._require_decidable(await self._store.rounds.get(n))
        why = f"turned down by {who}" + (f": {reason}" if reason else "")
        return await self._stop(n, RoundState.REJECTED, who=who, reason=why)

    async def approve(self, n: int, *, who: str, reason: str | None) -> Round:
        """An operator agrees to the candidate, or to the next step of its canary. Raises `NotFound` and `Conflict`."""
        round = await self._store.rounds.get(n)
        self._require_decidable(round)
        approved: CanaryState | None = None
        if round.state is RoundState.CANARY:
            state = CanaryState.model_validate(round.canary)
            if self._settings.canary.advance == "automatic" or state.now is None:
                raise Conflict(f"The canary of round {n} takes its next step by itself.", code="nothing_to_approve")
            approved = state.approve(who)
        try:
            return await self._store.rounds.approve(n, expect=round.state, who=who, reason=reason, canary=approved)
        except StaleRound:  # the loop took a step meanwhile
            return await self.approve(n, who=who, reason=reason)

    async def _stop(self, n: int, to: RoundState, *, who: str, reason: str) -> Round:
        round = await self._store.rounds.get(n)
        if round.state.final:
            raise Conflict(f"Round {n} is already {round.state}.", code="round_over")
        try:
            stopped = await self._store.rounds.stop(n, expect=round.state, to=to, who=who, reason=reason)
        except StaleRound:  # the loop took a step meanwhile
            return await self._stop(n, to, who=who, reason=reason)
        if round.state is RoundState.TRAINING:
            await self._attempts.stop(n)
        if round.state is RoundState.CANARY:
            await self._settle(stopped)
        return stopped

    def _require_decidable(self, round: Round) -> None:
        if round.state not in (RoundState.AWAITING_APPROVAL, RoundState.CANARY):
            raise Conflict(
                f"Round {round.n} is {round.state} and waits for nobody's word. "
                f"To stop it, cancel it; to take back what it promoted, roll back.",
                code="nothing_to_approve",
            )

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: take the next step of the round that runs, and beside it look after those that are over."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._clear())
            loops.create_task(self._for_ever(self.step))
            loops.create_task(self._for_ever(self.settle))

    async def _clear(self) -> None:
        """Once, as soon as the store is there: what a Conductor that died could not end."""
        while True:
            try:
                return await self._attempts.end_left()
            except HeliotropeError as error:
                log.warning("attempts may be left: %s", error)
            await asyncio.sleep(IDLE_SECONDS)

    async def _for_ever(self, work: Callable[[], Awaitable[RoundState | None]]) -> None:
        while True:
            began = time.monotonic()
            try:
                seconds = _rest(await work(), time.monotonic() - began)
            except HeliotropeError as error:  # the store or the replicas are away; the round is where it was
                log.warning("the loop waits: %s", error)
                seconds = IDLE_SECONDS
            await asyncio.sleep(seconds)

    async def settle(self) -> RoundState | None:
        """What rounds that are over leave to do: a canary is taken off, a promotion is watched. None: nothing."""
        unsettled = await self._store.rounds.unsettled()
        for round in unsettled:
            await self._settle(round)
        return RoundState.CANARY if unsettled else None

    async def _settle(self, round: Round) -> None:
        """What does not succeed now is tried again later."""
        try:
            if round.state is RoundState.PROMOTED:
                await self._watch.look(round)
            else:
                await self._rollout.take_off(round)
        except (HeliotropeError, StaleRound) as error:
            log.warning("round %d is not settled yet: %s", round.n, error)

    async def step(self) -> RoundState | None:
        """Take one step of the running round; the state that it was in. None: no round is running."""
        round = await self._store.rounds.running()
        if round is None:
            return None
        try:
            await self._steps.take(round)
        except StaleRound as moved:  # cancelled, or taken over: not ours any more
            log.info("%s", moved)
        except HeliotropeError as error:
            if error.status == 503:
                raise
            await self._fail(round, error.message)
        except Exception as error:
            log.exception("round %d broke in state %s", round.n, round.state)
            await self._fail(round, f"{type(error).__name__}: {error}")
        return round.state

    async def _fail(self, round: Round, reason: str) -> None:
        current = await self._store.rounds.get(round.n)
        if not current.state.final:
            with contextlib.suppress(StaleRound):  # cancelled meanwhile, or not ours any more
                await self._store.rounds.move(round.n, expect=current.state, to=RoundState.FAILED, reason=reason)


def _rest(was: RoundState | None, took_seconds: float) -> float:
    """Seconds until the next step, after one in this state."""
    if was is RoundState.CANARY:
        return max(LOOK_SECONDS, LOOK_REST * took_seconds)
    idle = {None: IDLE_SECONDS, RoundState.AWAITING_APPROVAL: IDLE_SECONDS, RoundState.TRAINING: POLL_SECONDS}
    return idle.get(was, 0.0)
