"""The verdict on what an attempt left: its integrity, training's own report, and what the candidate does where it is served.

The last costs a replica some seconds, so only a candidate that passes all else is tried. It is loaded from where training
wrote it: nothing is published before the verdict is final.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service import gate
from service.arbiter import ModelArbiter
from service.contracts import Round, Verdict
from service.depot import load
from service.digest import content_digest
from service.errors import AdapterRejected, PreconditionFailed
from service.examining import Examination, Examiner
from service.gate.evidence import Evidence, Standing, Trial
from service.parity import Parity, compare
from service.registry import Registry
from service.settings import Settings
from service.store.store import Store
from service.suites.loader import chosen
from serving.contracts import Answer
from training.contracts import HELD_OUT, RoundReport
from training.outcomes import read_outcomes
from training.samples import read_samples
from training.snapshot import iterate


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    parity: Parity | None  # None: training left no samples, or the verdict was clear without
    behaviour: dict[str, Any] | None = None  # see `Examination`; None: nobody was asked


class Judge:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, registry: Registry, settings: Settings) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings.gate
        arbiter = ModelArbiter(settings.gate.judge) if settings.gate.judge is not None else None
        self._examiner = Examiner(
            registry, settings.gate, chosen(settings.gate, settings.model.name), arbiter, settings.baselines
        )

    async def judge(self, round: Round, report: RoundReport) -> Judgement:
        """Doing it twice does it once. Raises what `Registry.score` raises: then nothing is decided.

        Raises `PreconditionFailed` when another adapter was deployed meanwhile: there is nothing to compare with.
        """
        evidence = Evidence(
            report=report,
            integrity_fault=await asyncio.to_thread(
                self._registry.fault, report.adapter_directory, report.adapter_name
            ),
            added_by=round.requested_by if round.candidate else None,
            held_out=await self._standings(round, report),
        )
        verdict = gate.judge(evidence, self._settings)
        if not verdict.promote:
            return Judgement(verdict, None)
        trial, behaviour = await self._try(round, report)
        verdict = gate.judge(replace(evidence, trial=trial), self._settings)
        if not verdict.promote:
            await self._registry.abandon(report.adapter_name)
        return Judgement(verdict, trial.parity, behaviour or None)

    async def _try(self, round: Round, report: RoundReport) -> tuple[Trial, dict[str, Any]]:
        """What replicas answer under the candidate; one that they cannot load is a fault of it."""
        try:
            parity = await self._parity(report, report.samples) if report.samples is not None else None
            found = await self._examine(round, report)
        except AdapterRejected as refused:
            return Trial(fault=refused.message), {}
        return replace(found.trial, parity=parity), found.behaviour

    async def _examine(self, round: Round, report: RoundReport) -> Examination:
        assert round.parent is not None, "a round knows what it is measured against before it is judged"
        stable = (await self._store.route.read()).stable
        if self._examiner.asks and stable != round.parent:
            raise PreconditionFailed(
                f"{stable} answers by now, not {round.parent}, which round {round.n} was to be compared with. "
                "Start another round.",
                code="route_moved",
            )
        return await self._examiner.examine(report.adapter_directory, report.adapter_name, round.parent)

    async def _parity(self, report: RoundReport, samples: str) -> Parity:
        ours = await asyncio.to_thread(load, samples, read_samples)
        answers = [Answer(prompt_token_ids=each.prompt_token_ids, token_ids=each.token_ids) for each in ours]
        theirs = await self._registry.score(report.adapter_directory, report.adapter_name, answers)
        return compare(ours, theirs, report.dtype)

    async def _standings(self, round: Round, report: RoundReport) -> tuple[Standing, ...]:
        """Each held-out pair with whose it is; none where training did not say how it stands."""
        if report.held_out is None:
            return ()
        outcomes = await asyncio.to_thread(load, report.held_out, read_outcomes)
        snapshot = (await self._store.rounds.work(round.n)).snapshot
        assert snapshot is not None, "a round that was trained has a snapshot"
        owners = await asyncio.to_thread(load, snapshot, _owners)
        voted_at = await self._store.preferences.voted_at([outcome.pair_id for outcome in outcomes])
        return tuple(
            Standing(*owners[outcome.pair_id], voted_at.get(outcome.pair_id), outcome.gained) for outcome in outcomes
        )


def _owners(snapshot: Path) -> dict[str, tuple[str, str | None]]:
    """Held-out pair id -> digest of its prompt, and its voter."""
    return {
        row.pair_id: (content_digest([row.messages, list(row.prompt_token_ids or ())]), row.voter)
        for row in iterate(snapshot)
        if row.split == HELD_OUT
    }
