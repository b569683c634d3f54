"""A round trained once more, on this machine, and what came out compared with what came out then.

In a process of its own, so that whoever asks never loads torch. Needs the round's files where they lay, or a copy of
them: the snapshot, the base model and the adapter that it continued.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.depot import at_hand
from service.errors import BadRequest, Conflict, HeliotropeError
from service.evidence.provenance import caveats, hindrances, observed
from service.evidence.recipe import Recipe
from training.contracts import RoundReport, RoundSpec


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
    with _files(recipe.spec) as spec, tempfile.TemporaryDirectory(prefix="heliotrope-replay-") as folder:
        report = _train(spec, recipe.threads, Path(folder))
    return Replayed(
        round=recipe.spec.round,
        reproduced=report.adapter_digest == recipe.adapter_digest,
        expected=recipe.adapter_digest,
        found=report.adapter_digest,
        seconds=sum(report.seconds.values()),
        caveats=tuple(caveats(recipe.environment, here)),
    )


@contextmanager
def _files(spec: RoundSpec) -> Iterator[RoundSpec]:
    """The same round, with all that it reads on this machine as long as the block lasts."""
    needed = {"snapshot": spec.snapshot, "base model": spec.model}
    if spec.parent is not None:
        needed["parent adapter"] = spec.parent.directory
    with ExitStack() as stack:
        here = {name: stack.enter_context(at_hand(address)) for name, address in needed.items()}
        for name, path in here.items():
            if not path.exists():
                raise BadRequest(
                    f"The round's {name}, {needed[name]}, is not on this machine. Run the replay where it is.",
                    code="file_missing",
                )
        changed: dict[str, Any] = {"snapshot": str(here["snapshot"])}
        if spec.parent is not None:
            changed["parent"] = spec.parent.model_copy(update={"directory": str(here["parent adapter"])})
        yield spec.model_copy(update=changed)


def _train(spec: RoundSpec, threads: int, folder: Path) -> RoundReport:
    places = {"out": str(folder / "out"), "storage": str(folder / "ray"), "checkpoints": str(folder / "checkpoints")}
    file = folder / "spec.json"
    file.write_text(spec.model_copy(update=places).model_dump_json())
    command = [sys.executable, "-m", "training.replay", str(file), "--threads", str(threads)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise HeliotropeError("Training ended with an error; the lines above say why.", code="replay_failed")
    return RoundReport.model_validate_json(ended.stdout.splitlines()[-1])
