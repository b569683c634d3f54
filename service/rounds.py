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
from typing import Any, Protocol

from service import gate, preferences
from service.contracts import Funnel, Pair, Round, RoundBody, RoundState
from service.digest import content_digest
from service.errors import Conflict, HeliotropeError
from service.registry import Registry
from service.settings import Settings
from service.specs import Specs
from service.store.rounds import StaleRound
from service.store.store import Store
from serving.contracts import BASE
from training.contracts import AttemptStatus, Fingerprints, ParentAdapter, Progress, RoundReport, RoundSpec
from training.snapshot import pair_digest, write_snapshot

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between looks at the store while there is nothing to do
POLL_SECONDS = 0.3  # between looks at a running attempt

# What the body of POST /ops/rounds may override in the section [training].
TUNABLE = ("objective", "beta", "learning_rate", "epochs", "min_pairs")


class Trainer(Protocol):
    """Runs attempts; `training.attempt.Attempts` in a cluster."""

    async def start(self, spec: RoundSpec) -> None:
        """Starting what already runs does nothing."""
        ...

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus: ...

    async def stop(self, spec: RoundSpec) -> None: ...


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
        self._trainer = trainer
        self._registry = registry
        self._settings = settings
        self._specs = Specs(settings, model, fingerprints, use_gpu)
        self._handlers: dict[RoundState, Callable[[Round], Awaitable[None]]] = {
            RoundState.QUEUED: self._queued,
            RoundState.COLLECTING: self._collect,
            RoundState.TRAINING: self._train,
            RoundState.JUDGING: self._judge,
        }

    # --- what operators ask for ---------------------------------------------------------------------

    async def start(self, body: RoundBody, *, who: str, idempotency_key: str | None) -> tuple[Round, bool]:
        """Queue a round; the second value is False when the key had already queued it. Raises `Conflict`."""
        chosen = {name: getattr(body, name) for name in TUNABLE}
        return await self._store.rounds.create(
            settings=self._settings.round_defaults
            | {name: value for name, value in chosen.items() if value is not None},
            requested_by=who,
            note=body.note,
            idempotency_key=idempotency_key,
            body_sha256=content_digest(body.model_dump(mode="json")),
        )

    async def preview(self) -> Funnel:
        """What a round started now would use and leave out."""
        return (await self._pairs())[1]

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
            await self._trainer.stop(self._specs.write(work, await self._parent(work.round)))
        return cancelled

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: look for a round that is not final, take its next step."""
        while True:
            try:
                busy = await self.step()
            except HeliotropeError as error:  # the store or the replicas are away; the round is where it was
                log.warning("the loop waits: %s", error)
                busy = False
            await asyncio.sleep(POLL_SECONDS if busy else IDLE_SECONDS)

    async def step(self) -> bool:
        """Take one step of the running round. False when there is none."""
        round = await self._store.rounds.running()
        if round is None:
            return False
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
        return True

    async def _fail(self, round: Round, reason: str) -> None:
        current = await self._store.rounds.get(round.n)
        if not current.state.final:
            with contextlib.suppress(StaleRound):  # cancelled meanwhile, or not ours any more
                await self._store.rounds.move(round.n, expect=current.state, to=RoundState.FAILED, reason=reason)

    async def _queued(self, round: Round) -> None:
        await self._store.rounds.move(round.n, expect=RoundState.QUEUED, to=RoundState.COLLECTING)

    async def _collect(self, round: Round) -> None:
        """Choose the new pairs and freeze them: from here on the round's input never changes."""
        pairs, funnel = await self._pairs()
        needed = int(round.settings["min_pairs"])
        if len(pairs) < needed:
            await self._store.rounds.move(
                round.n, expect=RoundState.COLLECTING, to=RoundState.FAILED, funnel=funnel.model_dump(mode="json"),
                reason=f"{len(pairs)} new pairs, {needed} are needed (min_pairs): {needed - len(pairs)} are missing",
            )  # fmt: skip
            return
        held_out = preferences.hold_out(pairs, self._settings.training.held_out_share)
        rows = await self._store.preferences.snapshot_rows(pairs, held_out)
        folder = self._settings.rounds / f"{round.n:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        snapshot = folder / "pairs.parquet"
        await asyncio.to_thread(write_snapshot, snapshot, rows)
        round = await self._store.rounds.next_attempt(round.n, round.attempt)
        await self._store.rounds.freeze(
            round.n, attempt=round.attempt, pairs=pairs, held_out=held_out,
            parent=(await self._store.route.read()).stable,
            snapshot=str(snapshot), pair_digest=pair_digest(rows), funnel=funnel.model_dump(mode="json"),
            adapter_ordinal=await self._store.adapters.next_ordinal(),
        )  # fmt: skip

    async def _train(self, round: Round) -> None:
        """Start the attempt if nobody runs it, and copy its progress into the round's events."""
        work = await self._store.rounds.work(round.n)
        spec = self._specs.write(work, await self._parent(round))
        seen = await self._progress_seen(round)
        status = await self._trainer.poll(spec, seen)
        for entry in status.progress:
            await self._store.rounds.add_event(round.n, entry.kind, _event(entry, round.attempt))
        if status.state == "absent":
            await self._start_attempt(round, spec)
        elif status.state == "failed":
            await self._trainer.stop(spec)
            await self._try_again(round, status)
        elif status.state == "done":
            assert status.report is not None
            await self._store.rounds.move(
                round.n, expect=RoundState.TRAINING, to=RoundState.JUDGING, attempt=round.attempt,
                report=status.report.model_dump(mode="json"),
            )  # fmt: skip
            await self._trainer.stop(spec)  # its answer is in the store; the process is not needed any more

    async def _start_attempt(self, round: Round, spec: RoundSpec) -> None:
        """Nobody runs this attempt: it was never started, or its process died without a word."""
        began = await self._store.rounds.events(round.n)
        if any(e.kind == "attempt" and e.data["attempt"] == round.attempt for e in began):
            await self._try_again(round, AttemptStatus(state="failed", failure="its process died", retryable=True))
            return
        await self._store.rounds.add_event(round.n, "attempt", {"attempt": round.attempt})
        await self._trainer.start(spec)
        if (await self._store.rounds.get(round.n)).state is not RoundState.TRAINING:
            await self._trainer.stop(spec)  # cancelled meanwhile, when there was nothing to stop yet

    async def _try_again(self, round: Round, status: AttemptStatus) -> None:
        """The same pairs and seed in a new attempt; what is wrong with the input itself would only fail again."""
        limit = self._settings.training.max_attempts
        if not status.retryable or round.attempt >= limit:
            await self._fail(round, f"attempt {round.attempt} of {limit}: {status.failure}")
            return
        log.warning("round %d: attempt %d is given up: %s", round.n, round.attempt, status.failure)
        await self._store.rounds.next_attempt(round.n, round.attempt)

    async def _judge(self, round: Round) -> None:
        report = RoundReport.model_validate(round.report)
        assert report.pair_digest == round.pair_digest, "training learned from other pairs than those frozen"
        fault = await asyncio.to_thread(self._registry.fault, Path(report.adapter_directory), report.adapter_name)
        verdict = gate.judge(report, fault, self._settings.gate)
        if not verdict.promote:
            await self._store.rounds.move(
                round.n, expect=RoundState.JUDGING, to=RoundState.REJECTED, attempt=round.attempt,
                verdict=verdict, reason=gate.summary(verdict),
            )  # fmt: skip
            return
        assert round.parent is not None
        adapter = await self._registry.publish(round.n, round.attempt, round.parent, report, verdict)
        # An operator who changed the route while we trained has decided; we do not decide against them.
        switch = await self._registry.promote(
            adapter.name, who=f"round {round.n}", reason=gate.summary(verdict),
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
            verdict=verdict, adapter=adapter.name, reason=gate.summary(verdict),
        )  # fmt: skip

    async def _expected_current(self, round: Round, name: str) -> str | None:
        """The parent; or the candidate itself, when a Conductor died between promoting it and saying so."""
        return name if (await self._store.route.read()).stable == name else round.parent

    # --- helpers ------------------------------------------------------------------------------------

    async def _pairs(self) -> tuple[list[Pair], Funnel]:
        votes = await self._store.preferences.effective_votes()
        learned = await self._store.preferences.learned_choices()
        imported = await self._store.preferences.imported_new()
        pairs, funnel, _ = await asyncio.to_thread(preferences.build, votes, learned, imported)
        return pairs, funnel

    async def _parent(self, round: Round) -> ParentAdapter | None:
        if round.parent in (None, BASE):
            return None
        adapter = await self._store.adapters.get(str(round.parent))
        return ParentAdapter(name=adapter.name, directory=adapter.directory)

    async def _progress_seen(self, round: Round) -> int:
        """How many progress entries of this attempt the store already holds."""
        events = await self._store.rounds.events(round.n)
        return sum(e.kind in ("phase", "step") and e.data["attempt"] == round.attempt for e in events)


def _event(entry: Progress, attempt: int) -> dict[str, Any]:
    detail = entry.step.model_dump(mode="json") if entry.step is not None else {"phase": entry.phase}
    return {"attempt": attempt, **detail}
