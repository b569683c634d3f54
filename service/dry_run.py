"""What a round would do if it were started now: what it would use and leave out, and what it would take. Starts nothing."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.canary.outlook import Sights, outlook
from service.collecting import missing
from service.contracts import RoundBody
from service.estimates import Base, Estimate, estimate
from service.inspecting import Inspector
from service.pairs import Funnel
from service.replay import replayed
from service.report.records import DataReport
from service.settings import Settings
from service.store.store import Store
from service.tuning import chosen

BYTES_OF = {"bfloat16": 2, "float16": 2}  # of a parameter by its dtype; of any other 4


class DryRun(BaseModel):
    """The answer to `POST /ops/rounds` with `dry_run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dry_run: Literal[True] = True
    enough: bool
    missing: str | None  # what must still come before a round would learn; None: it is enough
    objective: str
    min_pairs: int
    settings: dict[str, Any]  # as the round would use them
    people: int  # whose votes the pairs are
    apps: int
    training: int  # new pairs to learn from
    thumbs: int  # single ones, where the objective learns from them
    replayed: int  # pairs that earlier rounds have learned, at most: as many as the settings ask for
    held_out: int  # pairs to judge by
    estimate: Estimate
    canary: Sights | None  # what it could see of harm, and when; None: no canary is set
    funnel: Funnel
    report: DataReport


@dataclass(frozen=True)
class DryRuns:
    """One per service, in the Conductor."""

    inspector: Inspector
    store: Store
    settings: Settings
    model: Path
    use_gpu: bool

    async def look(self, body: RoundBody) -> DryRun:
        """Raises `BadRequest` where the round itself would be refused."""
        tuned = chosen(body, self.settings.round_defaults)
        objective, needed = str(tuned["objective"]), int(tuned["min_pairs"])
        report = await self.inspector.report(objective, needed)
        least = self.settings.rounds
        lacking = missing(report.funnel, objective, needed, users=least.min_users, apps=least.min_apps)
        base = await asyncio.to_thread(base_of, self.model, use_gpu=self.use_gpu)
        counts = report.counts
        repeated = replayed(counts.training + counts.thumbs, float(tuned["replay"]))
        examples = (counts.training + counts.thumbs + repeated) * int(tuned["epochs"])
        return DryRun(
            enough=lacking is None,
            missing=lacking,
            objective=objective,
            min_pairs=needed,
            settings=tuned,
            people=report.funnel.users,
            apps=report.funnel.apps,
            training=counts.training,
            thumbs=counts.thumbs,
            replayed=repeated,
            held_out=counts.held_out,
            estimate=estimate(examples, await self.store.past_rounds.last(), base),
            canary=await outlook(self.store, self.settings.canary) if self.settings.canary.shares else None,
            funnel=report.funnel,
            report=report,
        )


def base_of(model: Path, *, use_gpu: bool) -> Base:
    """How large the model is, by its files. A model without weights there has none to speak of."""
    config = model / "config.json"
    known = json.loads(config.read_bytes()) if config.is_file() else {}
    stored = BYTES_OF.get(str(known.get("dtype") or known.get("torch_dtype")), 4)
    parameters = sum(file.stat().st_size for file in model.glob("*.safetensors")) // stored
    bytes_each = 2 if use_gpu else 4  # unless settings say otherwise: bfloat16 on a GPU, float32 on a CPU
    return Base(parameters, bytes_each, "gpu" if use_gpu else "cpu", max(1, (os.cpu_count() or 1) // 2))
