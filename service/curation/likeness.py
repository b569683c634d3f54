"""How alike two texts are, and how much of one stands in another, word for word. Pure.

Likeness is the Jaccard index of the texts' runs of three words, estimated by MinHash (Broder 1997, "On the resemblance
and containment of documents"): texts become short signatures once, and only signatures are compared.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SLOTS = 32  # numbers in the signature of one text; the estimate's standard deviation is at most 0.09
SHINGLE_WORDS = 3
COPIED_WORDS = 5  # a shorter run may stand in both by chance
NOTHING = 1 << 31  # in every slot of a text without words; hashes are smaller

# Writing systems without spaces: each sign counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w+|[^\w\s]")


@cache
def _constants(name: str, count: int) -> NDArray[np.uint64]:
    """[count] odd numbers that are the same on every machine."""
    digests = (hashlib.blake2b(f"{name} {index}".encode(), digest_size=8).digest() for index in range(count))
    return np.array([int.from_bytes(digest, "big") | 1 for digest in digests], dtype=np.uint64)


_PLACES = _constants("place", SHINGLE_WORDS)
_FACTORS = _constants("factor", SLOTS)
_OFFSETS = _constants("offset", SLOTS)
_WEIGHTS = _constants("weight", SLOTS)
_MIX = _constants("mix", 1)[0]


def words(text: str) -> list[str]:
    """Lower case; punctuation marks are words of their own."""
    return _WORD.findall(text.lower())


def signature(text: str) -> tuple[int, ...]:
    """[SLOTS] numbers below 2^31 (of a text without words: NOTHING): alike texts agree in most places."""
    found = words(text)
    if not found:
        return (NOTHING,) * SLOTS
    found += [""] * (SHINGLE_WORDS - len(found))  # fewer words than a run has are one run
    hashes = np.array([zlib.crc32(word.encode()) for word in found], dtype=np.uint64)  # [words]
    runs = len(found) - SHINGLE_WORDS + 1
    shingles = sum((hashes[place : place + runs] * _PLACES[place] for place in range(SHINGLE_WORDS)), np.uint64(0))
    shingles = (shingles ^ (shingles >> np.uint64(29))) * _MIX  # [runs]; the low bits reach the high ones
    slots = (shingles[:, None] ^ (shingles[:, None] >> np.uint64(32))) * _FACTORS + _OFFSETS  # [runs, SLOTS]
    return tuple((slots.min(axis=0) >> np.uint64(33)).tolist())


def pair_signature(question: str, chosen: str, rejected: str) -> tuple[int, ...]:
    """[3 * SLOTS]: of the question, the chosen and the rejected answer, "" where there is none."""
    return signature(question) + signature(chosen) + signature(rejected)


def likeness(a: Sequence[int], b: Sequence[int]) -> float:
    """0 to 1. Of two pairs' signatures the likeness of the part in which they are least alike.

    So a question of its own makes a pair its own, however long the answers that it shares with others.
    """
    assert len(a) == len(b), "signatures of different things"
    same = np.array(a).reshape(-1, SLOTS) == np.array(b).reshape(-1, SLOTS)  # [parts, SLOTS]
    return float(same.mean(axis=1).min())


def condensed(signatures: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[pairs, parts * SLOTS] -> [pairs, parts]: one number for each part, the same for the same signature only."""
    parts = signatures.astype(np.uint64).reshape(len(signatures), signatures.shape[1] // SLOTS, SLOTS)
    return (parts * _WEIGHTS).sum(axis=2, dtype=np.uint64)


def copied(answer: str, prompt: str) -> float:
    """The share of the answer's words that stand in runs of COPIED_WORDS or more in the prompt; 0 to 1."""
    said, asked = words(answer), words(prompt)
    in_prompt = {tuple(asked[at : at + COPIED_WORDS]) for at in range(len(asked) - COPIED_WORDS + 1)}
    marked: set[int] = set()
    for at in range(len(said) - COPIED_WORDS + 1):
        if tuple(said[at : at + COPIED_WORDS]) in in_prompt:
            marked.update(range(at, at + COPIED_WORDS))
    return len(marked) / len(said) if said else 0.0


class Shelf:
    """Signatures put aside, among which those that are alike to another are found without looking at all of them.

    A signature is cut into so many bands that two which are alike enough agree in one band whole (locality-sensitive
    hashing); only those are compared, and of each band the first `PER_BAND`, so that the cost stays linear where
    many share a band. What is missed by that is one duplicate among many that were found.
    """

    PER_BAND = 8

    def __init__(self, signatures: NDArray[np.int64], threshold: float) -> None:
        """`signatures` [pairs, parts * SLOTS] that are going to be asked for; `threshold` is a likeness."""
        self._signatures, self._threshold = signatures, threshold
        self._keys = _bands(signatures, threshold).tolist()  # [pairs][bands]
        self._shelves: defaultdict[int, list[int]] = defaultdict(list)

    def like(self, row: int) -> int | None:
        """The first row on the shelf whose signature is at least `threshold` alike to that of this row; None: there is none."""
        shelves = self._shelves
        candidates = sorted({other for key in self._keys[row] if key in shelves for other in shelves[key]})
        if not candidates:
            return None
        same = self._signatures[candidates] == self._signatures[row]  # [candidates, parts * SLOTS]
        parts = same.reshape(len(candidates), -1, SLOTS).mean(axis=2)  # [candidates, parts]
        return next((candidates[at] for at in np.flatnonzero(parts.min(axis=1) >= self._threshold)), None)

    def put(self, row: int) -> None:
        for key in self._keys[row]:
            shelf = self._shelves[key]
            if len(shelf) < self.PER_BAND:
                shelf.append(row)


def _bands(signatures: NDArray[np.int64], threshold: float) -> NDArray[np.uint64]:
    """[pairs, bands]: of each band of each signature a number that stands for its places and what is in them."""
    pairs, places = signatures.shape
    apart = places // SLOTS * int((1 - threshold) * SLOTS + 1e-9)  # places in which two that are alike may differ
    count = min(apart + 1, places // 2)
    factors = _constants("band", places)
    keys = np.zeros((pairs, count), dtype=np.uint64)
    # Every band takes places from all parts: an answer that many pairs share fills no band alone.
    for place in range(places):
        keys[:, place % count] += (signatures[:, place].astype(np.uint64) + np.uint64(1)) * factors[place]
    return keys
