"""The spec of a round over given rows, as tests of training need it: what every round must be told, filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.contracts import RoundSpec
from training.fingerprints import fingerprints
from training.snapshot import SnapshotRow, write_snapshot


def round_spec(model: Path, rows: list[SnapshotRow], folder: Path, **fields: Any) -> RoundSpec:
    """The rows are written to a snapshot in the folder, which holds all the round's directories; `fields` replace."""
    snapshot = folder / "snapshot.parquet"
    defaults: dict[str, Any] = {
        "round": 1,
        "attempt": 1,
        "snapshot": str(snapshot),
        "pair_digest": write_snapshot(snapshot, rows),
        "model": str(model),
        "fingerprints": fingerprints(model),
        "parent": None,
        "adapter_ordinal": 1,
        "out": str(folder / "out"),
        "storage": str(folder / "storage"),
        "checkpoints": str(folder / "checkpoints"),
        "trackers": (),
    }
    return RoundSpec.model_validate(defaults | fields)
