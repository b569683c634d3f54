"""The verdict on what an attempt left: integrity, the gate's checks and, last, whether serving agrees with training.

The last costs a replica some seconds, so only a candidate that passes all else is asked for it. It is loaded from where
training wrote it: nothing is published before the verdict is final.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from service import gate
from service.contracts import Round, Verdict
from service.parity import Parity, compare
from service.registry import Registry
from service.settings import GateSettings
from serving.contracts import Answer
from training.contracts import RoundReport
from training.samples import read_samples


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    parity: Parity | None  # None: training left no samples, or the verdict was clear without


class Judge:
    """One per service, in the Conductor."""

    def __init__(self, registry: Registry, settings: GateSettings) -> None:
        self._registry = registry
        self._settings = settings

    async def judge(self, round: Round, report: RoundReport) -> Judgement:
        """Doing it twice does it once. Raises what `Registry.score` raises: then nothing is decided."""
        added_by = round.requested_by if round.candidate else None
        fault = await asyncio.to_thread(self._registry.fault, Path(report.adapter_directory), report.adapter_name)
        verdict = gate.judge(report, fault, self._settings, added_by=added_by)
        if not verdict.promote or report.samples is None:
            return Judgement(verdict, None)
        parity = await self._parity(report, Path(report.samples))
        verdict = gate.judge(report, fault, self._settings, added_by=added_by, parity=parity)
        if not verdict.promote:
            await self._registry.abandon(report.adapter_name)
        return Judgement(verdict, parity)

    async def _parity(self, report: RoundReport, samples: Path) -> Parity:
        ours = await asyncio.to_thread(read_samples, samples)
        answers = [Answer(prompt_token_ids=each.prompt_token_ids, token_ids=each.token_ids) for each in ours]
        theirs = await self._registry.score(Path(report.adapter_directory), report.adapter_name, answers)
        return compare(ours, theirs, report.dtype)
