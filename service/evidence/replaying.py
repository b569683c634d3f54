"""A round trained once more, on this machine, and what came out compared with what came out then.

In a process of its own, so that whoever asks never loads torch. Needs the round's files where they lay, or a copy of
them: the snapshot, the base model and the adapter that it continued.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from service.errors import BadRequest, Conflict, HeliotropeError
from service.evidence.provenance import caveats, hindrances, observed
from service.evidence.recipe import Recipe
from training.contracts import RoundReport


class Replayed(BaseModel):
    """What came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    reproduced: bool
    expected: str  # sha256 hex of the weights
    found: str
    seconds: float  # of training, without the start of its process
    caveats: tuple[str, ...]  # what may explain a difference


def replay(recipe: Recipe) -> Replayed:
    """Trains in a scratch folder, with progress on stderr. Raises `Conflict` for another environment, `BadRequest` for
    files that are not here, and `HeliotropeError` with training's own reason."""
    here = observed()
    if found := hindrances(recipe.environment, here):
        raise Conflict(f"Round {recipe.spec.round} would not come out the same here: {'; '.join(found)}. "
                       "Run the replay with the code and packages of then.", code="not_replayable")  # fmt: skip
    _require_files(recipe)
    with tempfile.TemporaryDirectory(prefix="heliotrope-replay-") as folder:
        report = _train(recipe, Path(folder))
    return Replayed(
        round=recipe.spec.round,
        reproduced=report.adapter_digest == recipe.adapter_digest,
        expected=recipe.adapter_digest,
        found=report.adapter_digest,
        seconds=sum(report.seconds.values()),
        caveats=tuple(caveats(recipe.environment, here)),
    )


def _require_files(recipe: Recipe) -> None:
    spec = recipe.spec
    needed = {"snapshot": spec.snapshot, "base model": spec.model}
    if spec.parent is not None:
        needed["parent adapter"] = spec.parent.directory
    for name, path in needed.items():
        if not Path(path).exists():
            raise BadRequest(f"The round's {name}, {path}, is not on this machine. Run the replay where it is.",
                             code="file_missing")  # fmt: skip


def _train(recipe: Recipe, folder: Path) -> RoundReport:
    places = {"out": str(folder / "out"), "storage": str(folder / "ray"), "checkpoints": str(folder / "checkpoints")}
    spec = folder / "spec.json"
    spec.write_text(recipe.spec.model_copy(update=places).model_dump_json())
    command = [sys.executable, "-m", "training.replay", str(spec), "--threads", str(recipe.threads)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise HeliotropeError("Training ended with an error; the lines above say why.", code="replay_failed")
    return RoundReport.model_validate_json(ended.stdout.splitlines()[-1])
