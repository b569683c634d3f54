"""Preferences on their way from a file to a snapshot: split and counted, with the reason for each bad row.

Knows nothing of files, which `reading.py` reads, and nothing of their formats.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from training.contracts import HELD_OUT, TRAIN
from training.errors import TrainingError
from training.formats import Format, Preference, Recognised
from training.objective import parse
from training.reading import Fault
from training.snapshot import SnapshotRow


@dataclass
class Intake:
    """Preferences on their way from a file to the snapshot: gives each its split, and counts what goes by.

    A prompt's hash alone says whether it is held out, so the same prompt is so in every file and every round. In memory
    stay 8 bytes a row.
    """

    held_out_share: float
    skip_bad: bool
    on_fault: Callable[[Fault], None]
    on_format: Callable[[Recognised], None] | None = None  # for whoever reads the file
    formats: Counter[Format] = field(default_factory=Counter)
    splits: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (split, whether it is a pair) -> rows
    faults: int = 0
    ignored: set[str] = field(default_factory=set)  # fields that say nothing here
    _numbers: array[int] = field(default_factory=lambda: array("q"))  # [rows of the snapshot], each one's in the file

    def rows(self, found: Iterable[Preference | Fault]) -> Iterator[SnapshotRow]:
        """The rows of a snapshot. After the last, raises `TrainingError` when one was bad, or there was none."""
        for item in found:
            if isinstance(item, Fault):
                self.faults += 1
                self.on_fault(item)
            else:
                yield self._row(item)
        if self.faults and not self.skip_bad:
            raise TrainingError(
                f"{self.faults} of {self.faults + len(self)} rows are bad, so nothing is trained: "
                "mend them, or leave them out with --skip-bad"
            )
        if not len(self):
            raise TrainingError("there are no preferences in the file")

    def require_enough(self, objective: str) -> None:
        """Raises `TrainingError` when nothing of this is to be trained on, with what to do about it."""
        if not parse(objective).unpaired and not any(is_pair for _, is_pair in self.splits):
            raise TrainingError(f"all rows are single thumbs, and {objective!r} learns from pairs: use --objective kto")
        if not self.n_train:
            raise TrainingError(f"all {len(self)} rows would be held out: lower --held-out, or set it to 0")

    def number_in_file(self, row: int) -> int:
        """Of a row of the snapshot, from 1: what a person finds it by."""
        return self._numbers[row - 1]

    @property
    def n_train(self) -> int:
        return sum(count for (split, _), count in self.splits.items() if split == TRAIN)

    @property
    def n_held_out(self) -> int:
        return len(self) - self.n_train

    def __len__(self) -> int:
        return len(self._numbers)

    def _row(self, preference: Preference) -> SnapshotRow:
        messages = json.dumps(preference.messages, ensure_ascii=False)
        split = HELD_OUT if _share(messages) < self.held_out_share else TRAIN
        answers = json.dumps([preference.chosen, preference.rejected], ensure_ascii=False)
        content = hashlib.sha256(f"{messages}\n{answers}".encode()).hexdigest()
        self.formats[preference.format] += 1
        self.splits[split, preference.chosen is not None and preference.rejected is not None] += 1
        self.ignored.update(preference.ignored)
        self._numbers.append(preference.row)
        return SnapshotRow(
            f"{preference.row:012d}-{content[:16]}",  # in the order of the file, which a stream cannot change
            split,
            messages=messages,
            chosen_text=preference.chosen,
            rejected_text=preference.rejected,
        )


def _share(text: str) -> float:
    """A hash from 0 to 1."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
