"""How the deployed policy and the candidate stand on each held-out pair, in a JSON file: which of both is better, and for whom.

Training writes it beside the adapter and names it in `RoundReport.held_out`; the gate reads it to look at prompts, people
and times one by one. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.errors import SnapshotInvalid
from training.files import write_file


@dataclass(frozen=True)
class Outcome:
    """One held-out pair. Margins are log p(chosen) - log p(rejected), nats; above 0 the policy is right."""

    pair_id: str
    current: float
    candidate: float

    @property
    def gained(self) -> int:
        """1 where only the candidate is right, -1 where only the current policy is, else 0."""
        return int(self.candidate > 0) - int(self.current > 0)


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """`{"outcomes": [...]}`, there completely or not at all. Raises `ValueError` for a margin that is not finite."""
    content = json.dumps({"outcomes": [asdict(outcome) for outcome in outcomes]}, allow_nan=False)
    write_file(path, content.encode())


def read_outcomes(path: Path) -> list[Outcome]:
    """All outcomes of the file. Raises `SnapshotInvalid` naming it when it is not such a file."""
    try:
        outcomes = json.loads(path.read_bytes())["outcomes"]
        found = [Outcome(str(o["pair_id"]), float(o["current"]), float(o["candidate"])) for o in outcomes]
        if not all(math.isfinite(margin) for outcome in found for margin in (outcome.current, outcome.candidate)):
            raise ValueError("a margin is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotInvalid(f"{path}: not a file of held-out outcomes ({error})") from error
    return found
