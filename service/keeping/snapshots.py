"""What rounds have left in files of a person who is to be erased: found, and taken out.

Each round has one folder: its snapshot, and under its attempts the answers by which serving was compared with
training. Checkpoints and curves hold numbers only; what training wrote in between has no name and ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service import depot
from service.store.completion_rows import prompt_digest
from service.store.erasure import Traces
from training.contracts import TRAIN
from training.errors import SnapshotInvalid
from training.snapshot import SnapshotRow, iterate, write_snapshot

SNAPSHOT = "pairs.parquet"
ATTEMPT = "attempt-"  # begins the name of each attempt's folder
SAMPLES = "samples.json"  # token ids of held-out answers


@dataclass(frozen=True)
class Cleaned:
    """What was found in one round's folder, and is there no more."""

    round: int
    rows: int
    trained_on: bool  # some of the rows were for training, not only for judging


def folders(rounds: str) -> Iterator[tuple[int, str]]:
    """Each round's number and the address of its folder."""
    for name in depot.names(rounds):
        if name.isdecimal():
            yield int(name), f"{rounds}/{name}"


def left_by(row: SnapshotRow, traces: Traces) -> bool:
    """A prompt that they wrote goes from everybody's rows: whoever else wrote the same loses a row of a past round."""
    if row.pair_id in traces.pair_ids or row.voter in traces.voters:
        return True
    return row.prompt_token_ids is not None and prompt_digest(row.prompt_token_ids) in traces.prompt_digests


def holds(snapshot: str, traces: Traces) -> bool:
    """Whether the snapshot, if there is one, has a row of theirs. One that cannot be read may have."""
    return depot.load(snapshot, lambda file: _holds(file, traces))


def _holds(snapshot: Path, traces: Traces) -> bool:
    try:
        return snapshot.is_file() and any(left_by(row, traces) for row in iterate(snapshot))
    except SnapshotInvalid:
        return True


def clean(number: int, folder: str, traces: Traces) -> Cleaned | None:
    """Takes their rows out of a round's folder; None when there were none.

    The snapshot is replaced as a whole. One that cannot be read is removed, for nobody can say what is in it.
    """
    snapshot = f"{folder}/{SNAPSHOT}"
    with depot.at_hand(snapshot) as file:
        if not _holds(file, traces):
            return None
        try:
            found = [row.split for row in iterate(file) if left_by(row, traces)]
            with depot.writing(snapshot) as cleaned:
                write_snapshot(cleaned, (row for row in iterate(file) if not left_by(row, traces)))
        except SnapshotInvalid:
            found = [TRAIN]
            depot.remove(snapshot)
    remove_samples(folder)
    return Cleaned(number, len(found), TRAIN in found)


def remove_samples(folder: str) -> None:
    for name in depot.names(folder):
        if name.startswith(ATTEMPT):
            depot.remove(f"{folder}/{name}/{SAMPLES}")
