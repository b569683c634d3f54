"""A round's examples: their token ids in a scratch file, and in memory only how long each is.

A step reads the few examples it is about to learn from, so memory is 34 bytes an example whatever its length. The file
has no name, belongs to one process, and is gone with it. `load_examples` fills it from a snapshot, with everything
between the two: the digest, the chat template, the checks of the data, the splits. Knows no model and no tensor.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import weakref
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from training.checks import DataChecks
from training.contracts import HELD_OUT, Finding
from training.errors import SnapshotInvalid
from training.objective import Objective
from training.pairs import Example, Pair, Thumb, Tokenizer, end_of_turn, render, shorten
from training.snapshot import PairDigest, SnapshotRow, iterate

_BUFFER_BYTES = 1 << 20
_WORD_BYTES = 4  # a record is int32 words: bytes of the id, the id padded to words, the weight, then the token ids


class _Scratch:
    """A file without a name, so nothing has to clean up after a process that is killed. Closed with its last reader."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder, buffering=_BUFFER_BYTES)  # noqa: SIM115, closed below
        weakref.finalize(self, self.file.close)

    def read(self, start: int, size: int) -> bytes:
        """`pread` and no memory map: pages of a map count as this process's memory."""
        content = os.pread(self.file.fileno(), size, start)
        assert len(content) == size, "the scratch file is shorter than what was written to it"
        return content


class Examples(Sequence[Example]):
    """Examples in the order in which they were written. Made by an `ExamplesWriter`."""

    def __init__(
        self,
        scratch: _Scratch,
        starts: NDArray[np.int64],
        sizes: NDArray[np.int32],
        lengths: NDArray[np.int32],
        prompts: NDArray[np.int64],
        replay: NDArray[np.bool_],
    ) -> None:
        self._scratch = scratch
        self._starts = starts  # [examples], bytes
        self._sizes = sizes  # [examples], bytes
        self.lengths = lengths  # [examples, 3], tokens of prompt, chosen, rejected; 0: there is no such answer
        self.prompts = prompts  # [examples], a hash: equal where the prompts are
        self.replay = replay  # [examples], an earlier round has learned it already
        self.is_pair: NDArray[np.bool_] = (lengths[:, 1] > 0) & (lengths[:, 2] > 0)  # [examples], else a thumb

    @property
    def n_pairs(self) -> int:
        return int(self.is_pair.sum())

    @property
    def n_thumbs(self) -> int:
        return len(self) - self.n_pairs

    def where(self, mask: NDArray[np.bool_]) -> Examples:
        """Those for which `mask` [examples] is true, in the same file."""
        return Examples(
            self._scratch,
            self._starts[mask],
            self._sizes[mask],
            self.lengths[mask],
            self.prompts[mask],
            self.replay[mask],
        )

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(len(self))[index]]
        return self._read(range(len(self))[index])  # raises IndexError, which ends an iteration

    def _read(self, index: int) -> Example:
        record = self._scratch.read(int(self._starts[index]), int(self._sizes[index]))
        id_bytes = int.from_bytes(record[:_WORD_BYTES], "little")
        id = record[_WORD_BYTES : _WORD_BYTES + id_bytes].decode()
        replay, (weight,) = bool(self.replay[index]), struct.unpack_from("<d", record, _padded(_WORD_BYTES + id_bytes))
        prompt, chosen, rejected = (int(length) for length in self.lengths[index])
        tokens = tuple(np.frombuffer(record, dtype="<i4")[-(prompt + chosen + rejected) :].tolist())
        answers = tokens[prompt:]
        if chosen and rejected:
            return Pair(id, tokens[:prompt], answers[:chosen], answers[chosen:], replay, weight)
        return Thumb(id, tokens[:prompt], answers, chosen > 0, replay, weight)


class ExamplesWriter:
    """Takes examples one by one; `close` gives them back as a sequence."""

    def __init__(self, folder: Path) -> None:
        self._scratch = _Scratch(folder)
        self._ends = array("q", [0])  # bytes
        self._lengths = array("i")
        self._prompts = array("q")
        self._replay = bytearray()

    def add(self, example: Example) -> None:
        if isinstance(example, Pair):
            id, chosen, rejected = example.pair_id.encode(), example.chosen, example.rejected
            assert chosen and rejected, "a pair has two answers"
        else:
            id = example.thumb_id.encode()
            chosen, rejected = (example.answer, ()) if example.up else ((), example.answer)
            assert example.answer, "a thumb has an answer"
        name = len(id).to_bytes(_WORD_BYTES, "little") + id
        tokens = np.array((*example.prompt, *chosen, *rejected), dtype="<i4").tobytes()
        record = name.ljust(_padded(len(name)), b"\0") + struct.pack("<d", example.weight) + tokens
        self._scratch.file.write(record)
        self._ends.append(self._ends[-1] + len(record))
        self._lengths.extend((len(example.prompt), len(chosen), len(rejected)))
        prompt = hashlib.blake2b(tokens[: _WORD_BYTES * len(example.prompt)], digest_size=8).digest()
        self._prompts.append(int.from_bytes(prompt, "little", signed=True))
        self._replay.append(example.replay)

    def close(self) -> Examples:
        """All that was added. Nothing can be added any more."""
        self._scratch.file.flush()
        ends = np.frombuffer(self._ends, dtype=np.int64)
        return Examples(
            self._scratch,
            ends[:-1],
            np.diff(ends).astype(np.int32),
            np.frombuffer(self._lengths, dtype=np.int32).reshape(-1, 3),
            np.frombuffer(self._prompts, dtype=np.int64),
            np.frombuffer(self._replay, dtype=np.bool_),
        )


@dataclass(frozen=True)
class RoundExamples:
    """The examples of a round by split, how many were left out for which reason, and what the checks have seen."""

    train: Examples
    held_out: Examples
    skipped: dict[str, int]
    findings: tuple[Finding, ...]


def load_examples(
    snapshot: Path,
    expected_digest: str,
    folder: Path,
    tokenizer: Tokenizer,
    stop_ids: Collection[int],
    *,
    vocabulary: int,
    context: int,
    objective: Objective | None,
) -> RoundExamples:
    """Check and render the snapshot row by row; what is to be learned goes to a scratch file in `folder`.

    An objective of pairs alone leaves single thumbs out; one of thumbs alone learns from the two thumbs of each pair.
    Without an objective nothing is to be learned, and nothing needs to be there.

    Raises `SnapshotInvalid` when the rows are not those of `expected_digest`, when a check refuses some, or when
    nothing is left to train on.
    """
    digest = PairDigest()
    checks = DataChecks(tokenizer, stop_ids, vocabulary=vocabulary, context=context)
    writer = ExamplesWriter(folder)
    held_out = bytearray()  # [rows], 0 or 1
    for row, example, shortened in _rendered(_passed(iterate(snapshot), digest), tokenizer, stop_ids, context):
        checks.see(row, example, shortened=shortened)
        writer.add(example)
        held_out.append(row.split == HELD_OUT)
    if digest.hex() != expected_digest:
        raise SnapshotInvalid(
            f"{snapshot} holds other pairs than the round was told to learn from: "
            f"digest {digest.hex()[:12]} instead of {expected_digest[:12]}"
        )
    findings, by_action = checks.findings(), defaultdict[str, list[Finding]](list)
    for finding in findings:
        by_action[finding.action].append(finding)
    if by_action["refused"]:
        raise SnapshotInvalid(f"the data is refused: {_said(by_action['refused'])}")
    rows, kept, is_held_out = writer.close(), checks.kept(), np.frombuffer(held_out, np.bool_)
    skipped = {finding.check: finding.count for finding in by_action["left_out"]}
    train = rows.where(kept & ~is_held_out)
    if objective is None:
        train = train.where(np.zeros(len(train), np.bool_))
    elif not objective.paired:
        train = _unpaired(train, folder)
    elif not objective.unpaired and train.n_thumbs:
        skipped["single_thumb"] = train.n_thumbs
        train = train.where(train.is_pair)
    examples = RoundExamples(train, rows.where(kept & is_held_out), skipped, findings)
    if objective is not None and not examples.train:
        raise SnapshotInvalid(
            f"nothing is left to train on: {len(rows)} rows in the snapshot, {len(examples.held_out)} held out; "
            f"left out: {_said(by_action['left_out']) or 'none'}"
        )
    return examples


def _unpaired(examples: Examples, folder: Path) -> Examples:
    """The same with each pair as a thumb up and a thumb down, for objectives that know nothing else."""
    writer = ExamplesWriter(folder)
    for example in examples:
        if isinstance(example, Pair):
            id, prompt, known = example.pair_id, example.prompt, (example.replay, example.weight)
            writer.add(Thumb(f"{id}/chosen", prompt, example.chosen, True, *known))
            writer.add(Thumb(f"{id}/rejected", prompt, example.rejected, False, *known))
        else:
            writer.add(example)
    return writer.close()


def _padded(size: int) -> int:
    """Bytes of whole words."""
    return size + -size % _WORD_BYTES


def _passed(rows: Iterable[SnapshotRow], digest: PairDigest) -> Iterator[SnapshotRow]:
    """The same rows, each added to the digest."""
    for row in rows:
        digest.add(row)
        yield row


def _rendered(
    rows: Iterable[SnapshotRow], tokenizer: Tokenizer, stop_ids: Collection[int], context: int
) -> Iterator[tuple[SnapshotRow, Example, bool]]:
    """Each row with its token ids, and whether it had to lose its oldest turns; the row is then the shorter one."""
    ends_turn = -1  # asked of the chat template only once there is an answer as text: sampled ones need none
    for row in rows:
        if ends_turn < 0 and (row.chosen_text, row.rejected_text) != (None, None):
            ends_turn = end_of_turn(tokenizer, stop_ids)
        example = render(row, tokenizer, ends_turn)
        too_long = row.messages is not None and example.longest > context
        shorter = shorten(row, tokenizer, ends_turn, context) if too_long else None
        if shorter is None:
            yield row, example, False
        else:
            yield shorter, render(shorter, tokenizer, ends_turn), True


def _said(findings: Sequence[Finding]) -> str:
    """Each check with how many rows, which, and why."""
    return "; ".join(
        f"{finding.count} {finding.check} (row {', '.join(map(str, finding.rows))}"
        f"{', ...' if finding.count > len(finding.rows) else ''}): {finding.why}"
        for finding in findings
    )
