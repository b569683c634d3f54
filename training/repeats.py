"""What rows of a snapshot have in common: a prompt, a preference, the opposite one, a voter.

Holds 25 bytes a row and no token: a row is known by 64-bit hashes. Two of a million different ones share a hash in one
of 30 million snapshots of that size.
"""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from training.pairs import Example, Pair


class Repeats:
    """Is fed every row in order, then compares those that a mask [rows] names. Answers in row indices from 0."""

    def __init__(self) -> None:
        self._held_out = bytearray()  # [rows], 0 or 1
        self._prompts = array("Q")  # [rows], hashes
        self._preferences = array("Q")  # [rows], hashes; two that differ in the last bit alone are opposites
        self._voters = array("Q")  # [rows], hashes; 0: not known

    def add(self, example: Example, voter: str | None, *, held_out: bool) -> None:
        prompt, preference = _hashes(example)
        self._held_out.append(held_out)
        self._prompts.append(prompt)
        self._preferences.append(preference)
        self._voters.append(0 if voter is None else _hash(voter.encode()))

    def leaked(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows to train on whose prompt is also that of a held-out row."""
        held_out, prompts = np.frombuffer(self._held_out, np.bool_), np.frombuffer(self._prompts, np.uint64)
        train = np.flatnonzero(among & ~held_out)
        return train[np.isin(prompts[train], prompts[among & held_out])]

    def contradicted(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows whose preference others reverse: of either side the first, as many as the rarer side has."""
        rows = np.flatnonzero(among)
        preferences = np.frombuffer(self._preferences, np.uint64)[rows]
        keys, counts = np.unique(preferences, return_counts=True)
        first = np.flatnonzero(keys[1:] == keys[:-1] | np.uint64(1))  # opposites are neighbours: 2k and 2k + 1
        rarer = np.minimum(counts[first], counts[first + 1])
        quota = dict(zip(np.append(keys[first], keys[first + 1]).tolist(), [*rarer.tolist()] * 2, strict=True))
        contested = np.isin(preferences, np.array(list(quota), np.uint64))
        contradicted = []
        for row, key in zip(rows[contested].tolist(), preferences[contested].tolist(), strict=True):
            if quota[key]:
                quota[key] -= 1
                contradicted.append(row)
        return np.array(contradicted, np.int64)

    def repeated(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows that say what an earlier one has said."""
        rows = np.flatnonzero(among)
        _, first = np.unique(np.frombuffer(self._preferences, np.uint64)[rows], return_index=True)
        return np.delete(rows, first)

    def of_busiest_voter(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows of the person who has most of them; none when no voter is known."""
        voters = np.frombuffer(self._voters, np.uint64)
        names, counts = np.unique(voters[among & (voters != 0)], return_counts=True)
        return np.flatnonzero(among & (voters == names[counts.argmax()])) if len(names) else np.array([], np.int64)


def _hashes(example: Example) -> tuple[int, int]:
    """Of the prompt; and of prompt and answers, whose last bit says which answer is the better one."""
    answers = (example.chosen, example.rejected) if isinstance(example, Pair) else (example.answer,)
    prompt, *contents = (np.array(tokens, np.int32).tobytes() for tokens in (example.prompt, *answers))
    in_order = sorted(contents)
    forward = contents == in_order if isinstance(example, Pair) else example.up
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in (prompt, *in_order))
    return _hash(prompt), _hash(whole) & ~1 | forward


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
