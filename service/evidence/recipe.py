"""What it takes to train the adapter of a round again: its recorded pairs, parent, settings, seed and number of threads.

The settings are those in the adapter's manifest, which was written with it and cannot have changed since; those of the
service may have. Reads the round's files and the store; trains nothing.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from service.contracts import Round
from service.depot import is_file, read
from service.errors import Conflict
from service.evidence.provenance import Environment
from service.store.rounds import RoundWork
from service.store.store import Store
from serving.adapters import CONFIG, MANIFEST
from serving.contracts import BASE
from training.contracts import Fingerprints, LoraSpec, ParentAdapter, RoundReport, RoundSpec


class Recipe(BaseModel):
    """`GET /ops/rounds/{n}/replay`. Its paths are those of the service's machine; `out` and such are yet to be chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: RoundSpec
    threads: int
    adapter_digest: str  # sha256 hex of the weights that came out
    environment: Environment


async def recipe(store: Store, n: int, model: Path) -> Recipe:
    """Raises `NotFound`, and `Conflict` with the reason why the round cannot be replayed."""
    work = await store.rounds.work(n)
    report = _trained(work.round)
    directory, parent = await _directory(store, work.round, report), await _parent(store, work.round)
    return await asyncio.to_thread(_write, work, report, directory, parent, model)


def _write(work: RoundWork, report: RoundReport, directory: str, parent: ParentAdapter | None, model: Path) -> Recipe:
    """`directory` is the adapter's."""
    round, (manifest, config) = work.round, _left(directory)
    how: dict[str, Any] = manifest["training"]
    if how.get("use_gpu") or int(how.get("workers", 1)) != 1:
        raise _cannot(round.n, "it was trained on a GPU or by several workers, where sums have no fixed order; "
                               "only what one worker trained on a CPU has the same bytes again")  # fmt: skip
    if work.snapshot is None or not is_file(work.snapshot):
        raise _cannot(round.n, "its snapshot is gone: past its time, or erased with a person's words")
    assert work.adapter_ordinal is not None and round.pair_digest is not None, "a round that trained has been frozen"
    learned = {name: value for name, value in how.items() if name in RoundSpec.model_fields}
    learned |= {"gradient_checkpointing": "on" if report.gradient_checkpointing else "off", "trackers": ()}
    spec = RoundSpec(
        round=round.n,
        attempt=round.attempt,
        snapshot=work.snapshot,
        pair_digest=round.pair_digest,
        model=str(model),
        fingerprints=Fingerprints(base_model=manifest["base_model"], tokenizer=manifest["tokenizer"]),
        parent=parent,
        adapter_ordinal=work.adapter_ordinal,
        out="", storage="", checkpoints="",
        lora=LoraSpec(rank=config["r"], alpha=config["lora_alpha"]),
        **learned,
    )  # fmt: skip
    return Recipe(
        spec=spec, threads=how["threads"], adapter_digest=report.adapter_digest, environment=_environment(round)
    )


def _trained(round: Round) -> RoundReport:
    if round.candidate is not None:
        raise _cannot(round.n, "it measured an adapter from outside and trained none")
    if round.report is None:
        raise _cannot(round.n, f"it is {round.state} and has trained no adapter")
    return RoundReport.model_validate(round.report)


async def _directory(store: Store, round: Round, report: RoundReport) -> str:
    """Where the adapter lies: published, or as the attempt left it."""
    published = None if round.adapter is None else await store.adapters.get(round.adapter)
    kept = published is not None and published.deleted_at is None
    return published.directory if published is not None and kept else report.adapter_directory


def _left(directory: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and PEFT's config."""
    try:
        return tuple(json.loads(read(f"{directory}/{name}")) for name in (MANIFEST, CONFIG))
    except (OSError, ValueError) as error:
        raise Conflict(
            f"{directory} does not say how the adapter was trained: {error}.", code="not_replayable"
        ) from error


async def _parent(store: Store, round: Round) -> ParentAdapter | None:
    if round.parent in (None, BASE):
        return None
    parent = await store.adapters.get(str(round.parent))
    if parent.deleted_at is not None:
        raise _cannot(round.n, f"the adapter that it continued, {parent.name}, is deleted")
    return ParentAdapter(name=parent.name, directory=parent.directory)


def _environment(round: Round) -> Environment:
    try:
        return Environment.model_validate(round.environment)
    except ValidationError as error:
        raise _cannot(round.n, "nothing is recorded of the code and packages that it ran with") from error


def _cannot(n: int, why: str) -> Conflict:
    return Conflict(f"Round {n} cannot be replayed: {why}.", param="n", code="not_replayable")
