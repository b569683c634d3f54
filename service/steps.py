"""What a round does in each of its states: one handler a state, which `rounds.py` calls again until the state is left.

Each can be repeated, because the step it takes is a compare-and-set in the store. One that raises `GivenUp`, or anything
else that is not the store's absence, ends the round `failed`; that is for `rounds.py` to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service import approving, evidence, gate
from service.attempts import AttemptsOfRound
from service.canary.rollout import Rollout
from service.collecting import Collection, Collector, missing
from service.contracts import Round, RoundState
from service.depot import Depot, remove, writing
from service.errors import Unavailable
from service.judging import Judge
from service.keeping.snapshots import SNAPSHOT
from service.patience import Patience
from service.registry import Registry
from service.settings import Settings
from service.store.round_rows import StaleRound
from service.store.store import Store
from training.contracts import RoundReport
from training.snapshot import write_snapshot


class Steps:
    """One per service, in the Conductor."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        settings: Settings,
        collector: Collector,
        attempts: AttemptsOfRound,
        rollout: Rollout,
    ) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._collector = collector
        self._attempts = attempts
        self._rollout = rollout
        self._judging = Judge(store, registry, settings)
        self._patience = Patience(settings.rounds)
        self._handlers: dict[RoundState, Callable[[Round], Awaitable[None]]] = {
            RoundState.QUEUED: self._queued,
            RoundState.COLLECTING: self._collect,
            RoundState.TRAINING: attempts.step,
            RoundState.JUDGING: self._judge,
            RoundState.AWAITING_APPROVAL: self._await_approval,
            RoundState.CANARY: rollout.step,
        }

    async def take(self, round: Round) -> None:
        """The next step of a round that is not final. Raises `StaleRound` where it has moved meanwhile."""
        await self._handlers[round.state](round)

    async def _queued(self, round: Round) -> None:
        await self._store.rounds.move(round.n, expect=RoundState.QUEUED, to=RoundState.COLLECTING)

    async def _collect(self, round: Round) -> None:
        """Choose the round's pairs and freeze them: from here on its input never changes."""
        parent = (await self._store.route.read()).stable
        if round.candidate is not None:
            await self._freeze(round, await self._collector.collect_for_candidate(round), parent)
            return
        objective = str(round.settings["objective"])
        found = await self._collector.look(objective, round)
        least = self._settings.rounds
        reason = missing(
            found.funnel, objective, int(round.settings["min_pairs"]), users=least.min_users, apps=least.min_apps
        )
        if reason is not None:
            await self._store.rounds.move(
                round.n, expect=RoundState.COLLECTING, to=RoundState.FAILED, reason=reason,
                funnel=found.funnel.model_dump(mode="json"),
            )  # fmt: skip
            return
        await self._freeze(round, await self._collector.collect(round, found, parent), parent)

    async def _freeze(self, round: Round, collected: Collection, parent: str) -> None:
        snapshot = f"{Depot.of(self._settings).round(round.n)}/{SNAPSHOT}"
        digest = await asyncio.to_thread(_write, snapshot, collected)
        try:
            round = await self._store.rounds.next_attempt(round.n, round.attempt)
            await self._store.rounds.freeze(
                round.n, attempt=round.attempt, pairs=collected.pairs, settled=collected.settled,
                held_out=collected.held_out, rows=len(collected.rows), parent=parent, snapshot=snapshot,
                pair_digest=digest,
                funnel=collected.funnel.model_dump(mode="json"),
                adapter_ordinal=await self._store.adapters.next_ordinal(),
                environment=await asyncio.to_thread(evidence.environment, self._settings.training),
            )  # fmt: skip
        except StaleRound:
            if (await self._store.rounds.get(round.n)).state.final:  # cancelled, perhaps to erase what is in the file
                await asyncio.to_thread(remove, snapshot)
            raise

    async def _judge(self, round: Round) -> None:
        """Judge the candidate and act on it; again where nobody answered, as long as patience lasts."""
        try:
            await self._decide(round)
        except Unavailable as error:
            if self._patience.bear(round.n, error):
                waits = {"attempt": round.attempt, "why": error.message}
                await self._store.rounds.add_event(round.n, "waits", waits)
            raise
        self._patience.restore()

    async def _decide(self, round: Round) -> None:
        report = RoundReport.model_validate(round.report)
        assert report.pair_digest == round.pair_digest, "training learned from other pairs than those frozen"
        if round.verdict is None:  # else a Conductor died between giving it and doing what it says
            judged = await self._judging.judge(round, report)
            round = await self._store.rounds.move(
                round.n, expect=RoundState.JUDGING, to=RoundState.JUDGING, attempt=round.attempt,
                verdict=judged.verdict, parity=judged.parity, behaviour=judged.behaviour,
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
        waits_for = approving.waits_for(round, round.verdict, self._settings.rounds)
        if waits_for is None:
            await self._rollout.begin(round, adapter.name, reason)
            return
        await self._store.rounds.move(
            round.n, expect=RoundState.JUDGING, to=RoundState.AWAITING_APPROVAL, attempt=round.attempt,
            adapter=adapter.name, reason=waits_for,
        )  # fmt: skip

    async def _await_approval(self, round: Round) -> None:
        assert round.adapter is not None and round.verdict is not None
        if round.approved_by is not None:
            reason = f"{gate.summary(round.verdict)}; approved by {round.approved_by}"
            await self._rollout.begin(round, round.adapter, reason)


def _write(snapshot: str, collected: Collection) -> str:
    """The digest of its pairs."""
    with writing(snapshot) as file:
        return write_snapshot(file, collected.rows)
