"""The loop: takes the one running round from state to state until it is final. A state machine over ports.

Third of the seven files of a thumbs-up: `service/preferences.py` made the pairs, `training/round.py` learns from
them, and back here `service/gate.py` is asked. Each state has one handler; each handler can be repeated, because
the step it takes is a compare-and-set in the store. A Conductor that dies in the middle is replaced by one that
does the same step again; a stale attempt is fenced off by its number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from service import gate
from service.attempts import AttemptsOfRound, GivenUp, Trainer
from service.collecting import Collection, Collector, missing
from service.contracts import Candidate, Round, RoundBody, RoundState
from service.digest import content_digest
from service.errors import Conflict, HeliotropeError
from service.judging import Judge
from service.overview import Overview
from service.pairs import Funnel
from service.registry import Registry
from service.settings import Settings
from service.specs import Specs
from service.store.rounds import StaleRound
from service.store.store import Store
from service.tuning import chosen
from training.contracts import Fingerprints, RoundReport
from training.snapshot import write_snapshot

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between looks at the store while there is nothing to do
POLL_SECONDS = 0.3  # between looks at a running attempt


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
        self._registry = registry
        self._settings = settings
        self.collector = Collector(store, settings)
        self.overview = Overview(self.collector, store, settings)
        self._judging = Judge(registry, settings.gate)
        specs = Specs(settings, model, fingerprints, use_gpu)
        self._attempts = AttemptsOfRound(store, trainer, specs, settings.training.max_attempts)
        self._handlers: dict[RoundState, Callable[[Round], Awaitable[None]]] = {
            RoundState.QUEUED: self._queued,
            RoundState.COLLECTING: self._collect,
            RoundState.TRAINING: self._train,
            RoundState.JUDGING: self._judge,
        }

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
        """Raises `NotFound`, and `Conflict` for a round that is over or whose adapter may be answering already."""
        work = await self._store.rounds.work(n)
        if work.round.state.final:
            raise Conflict(f"Round {n} is already {work.round.state}.", code="round_over")
        if work.round.state is RoundState.JUDGING:
            raise Conflict(
                f"Round {n} is being judged and cannot be stopped any more. Wait for its end; roll back if you must.",
                code="round_judging",
            )
        try:
            cancelled = await self._store.rounds.move(
                n, expect=work.round.state, to=RoundState.CANCELLED, attempt=work.round.attempt,
                reason=f"cancelled by {who}",
            )  # fmt: skip
        except StaleRound:  # the loop took a step meanwhile
            return await self.cancel(n, who=who)
        if work.round.state is RoundState.TRAINING:
            await self._attempts.stop(n)
        return cancelled

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: look for a round that is not final, take its next step."""
        while True:
            try:
                was = await self.step()
                seconds = IDLE_SECONDS if was is None else POLL_SECONDS if was is RoundState.TRAINING else 0
            except HeliotropeError as error:  # the store or the replicas are away; the round is where it was
                log.warning("the loop waits: %s", error)
                seconds = IDLE_SECONDS
            await asyncio.sleep(seconds)

    async def step(self) -> RoundState | None:
        """Take one step of the running round; the state that it was in. None: no round is running."""
        round = await self._store.rounds.running()
        if round is None:
            return None
        try:
            await self._handlers[round.state](round)
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

    async def _queued(self, round: Round) -> None:
        await self._store.rounds.move(round.n, expect=RoundState.QUEUED, to=RoundState.COLLECTING)

    async def _collect(self, round: Round) -> None:
        """Choose the round's pairs and freeze them: from here on its input never changes."""
        parent = (await self._store.route.read()).stable
        if round.candidate is not None:
            await self._freeze(round, await self.collector.collect_for_candidate(round), parent)
            return
        objective = str(round.settings["objective"])
        found = await self.collector.look(objective, round)
        reason = missing(found.funnel, objective, int(round.settings["min_pairs"]))
        if reason is not None:
            await self._store.rounds.move(
                round.n, expect=RoundState.COLLECTING, to=RoundState.FAILED, reason=reason,
                funnel=found.funnel.model_dump(mode="json"),
            )  # fmt: skip
            return
        await self._freeze(round, await self.collector.collect(round, found, parent), parent)

    async def _freeze(self, round: Round, collected: Collection, parent: str) -> None:
        folder = self._settings.rounds / f"{round.n:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        snapshot = folder / "pairs.parquet"
        digest = await asyncio.to_thread(write_snapshot, snapshot, collected.rows)
        try:
            round = await self._store.rounds.next_attempt(round.n, round.attempt)
            await self._store.rounds.freeze(
                round.n, attempt=round.attempt, pairs=collected.pairs, held_out=collected.held_out,
                rows=len(collected.rows), parent=parent, snapshot=str(snapshot), pair_digest=digest,
                funnel=collected.funnel.model_dump(mode="json"),
                adapter_ordinal=await self._store.adapters.next_ordinal(),
            )  # fmt: skip
        except StaleRound:
            if (await self._store.rounds.get(round.n)).state.final:  # cancelled, perhaps to erase what is in the file
                snapshot.unlink(missing_ok=True)
            raise

    async def _train(self, round: Round) -> None:
        """Let attempts follow one another until one reports, or none may follow any more."""
        outcome = await self._attempts.step(round)
        if isinstance(outcome, GivenUp):
            await self._fail(round, outcome.reason)

    async def _judge(self, round: Round) -> None:
        report = RoundReport.model_validate(round.report)
        assert report.pair_digest == round.pair_digest, "training learned from other pairs than those frozen"
        if round.verdict is None:  # else a Conductor died between giving it and doing what it says
            judged = await self._judging.judge(round, report)
            round = await self._store.rounds.move(
                round.n, expect=RoundState.JUDGING, to=RoundState.JUDGING, attempt=round.attempt,
                verdict=judged.verdict, parity=judged.parity,
            )  # fmt: skip
        assert round.verdict is not None
        reason = gate.summary(round.verdict)
        if not round.verdict.promote:
            await self._store.rounds.move(
                round.n, expect=RoundState.JUDGING, to=RoundState.REJECTED, attempt=round.attempt, reason=reason
            )
            return
        assert report.samples is None or round.parity is not None, "samples were left, and nobody compared them"
        adapter = await self._registry.publish(round, report, round.verdict)
        # An operator who changed the route while we trained has decided; we do not decide against them.
        switch = await self._registry.promote(
            adapter.name, who=f"round {round.n}", reason=reason,
            expected_current=await self._expected_current(round, adapter.name),
        )  # fmt: skip
        await self._store.rounds.add_event(
            round.n,
            "swap",
            {
                "attempt": round.attempt,
                "to": adapter.name,
                "prepare_seconds": switch.prepare_seconds,
                "flip_seconds": switch.flip_seconds,
            },
        )
        await self._store.rounds.move(
            round.n, expect=RoundState.JUDGING, to=RoundState.PROMOTED, attempt=round.attempt,
            adapter=adapter.name, reason=reason,
        )  # fmt: skip

    async def _expected_current(self, round: Round, name: str) -> str | None:
        """The parent; or the candidate itself, when a Conductor died between promoting it and saying so."""
        return name if (await self._store.route.read()).stable == name else round.parent
