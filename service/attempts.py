"""The attempts of one round: started, watched, and followed by the next while that makes sense.

The same pairs and seed go into each. Knows the trainer's port and the store; what a report is worth is not for here.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from service.contracts import Round, RoundState
from service.errors import GivenUp
from service.specs import Specs
from service.store.store import Store
from serving.contracts import BASE
from training.contracts import AttemptStatus, ParentAdapter, Progress, RoundSpec

log = logging.getLogger(__name__)

LAST_ROUNDS = 3  # whose attempts may have outlived the Conductor that started them


class Trainer(Protocol):
    """Runs attempts; `training.attempt.Attempts` in a cluster."""

    async def start(self, spec: RoundSpec) -> None:
        """Starting what already runs does nothing."""
        ...

    async def poll(self, spec: RoundSpec, since: int) -> AttemptStatus: ...

    async def stop(self, spec: RoundSpec) -> None: ...


class AttemptsOfRound:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, trainer: Trainer, specs: Specs, limit: int) -> None:
        self._store = store
        self._trainer = trainer
        self._specs = specs
        self._limit = limit  # attempts per round

    async def step(self, round: Round) -> None:
        """Start the attempt if nobody runs it, and copy its progress into the round's events. Its report moves the
        round on to judging. Raises `GivenUp` where no further attempt would help."""
        spec = await self._spec(round.n)
        status = await self._trainer.poll(spec, await self._progress_seen(round))
        for entry in status.progress:
            await self._store.rounds.add_event(round.n, entry.kind, _event(entry, round.attempt))
        if status.state == "absent":
            await self._start(round, spec)
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

    async def stop(self, n: int) -> None:
        await self._trainer.stop(await self._spec(n))

    async def end_left(self) -> None:
        """End attempts that outlived their round's training because a Conductor died before it could end them.

        Asked of the last rounds when a Conductor starts: whoever moves a round on ends its attempt itself.
        """
        for round in await self._store.rounds.list(LAST_ROUNDS):
            if round.pair_digest is not None and round.state is not RoundState.TRAINING:
                await self.stop(round.n)

    async def _start(self, round: Round, spec: RoundSpec) -> None:
        """Nobody runs this attempt: it was never started, or its process died without a word."""
        began = await self._store.rounds.events(round.n)
        if any(e.kind == "attempt" and e.data["attempt"] == round.attempt for e in began):
            died = AttemptStatus(state="failed", failure="its process died", retryable=True)
            await self._try_again(round, died)
            return
        await self._store.rounds.add_event(round.n, "attempt", {"attempt": round.attempt})
        await self._trainer.start(spec)
        if (await self._store.rounds.get(round.n)).state is not RoundState.TRAINING:
            await self._trainer.stop(spec)  # cancelled meanwhile, when there was nothing to stop yet

    async def _try_again(self, round: Round, status: AttemptStatus) -> None:
        """What is wrong with the input itself would only fail again."""
        if not status.retryable or round.attempt >= self._limit:
            raise GivenUp(f"attempt {round.attempt} of {self._limit}: {status.failure}")
        log.warning("round %d: attempt %d is given up: %s", round.n, round.attempt, status.failure)
        await self._store.rounds.next_attempt(round.n, round.attempt)

    async def _spec(self, n: int) -> RoundSpec:
        work = await self._store.rounds.work(n)
        return self._specs.write(work, await self._parent(work.round))

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
