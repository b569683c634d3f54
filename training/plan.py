"""Which examples go through the model together, and in which order the optimiser meets them. Knows only lengths.

Fixed once for a round: the reference is taken over the very micro-batches that are trained on, because the last bits
of a log-prob depend on what it is batched with. Steps are made when they are asked for, from a few numbers an example.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.rows import Layout

Indices = NDArray[np.int64]
MicroBatch = tuple[int, ...]  # indices of the examples that the plan was made for


@dataclass(frozen=True)
class Sizes:
    """What a plan has to know of its examples."""

    lengths: NDArray[np.int32]  # [examples, 3], tokens of prompt, chosen and rejected answer; 0: there is none
    prompts: NDArray[np.int64]  # [examples], equal where the prompts are

    @property
    def is_pair(self) -> NDArray[np.bool_]:
        return (self.lengths[:, 1] > 0) & (self.lengths[:, 2] > 0)

    def of(self, members: Sequence[int], mismatched: Mapping[int, int]) -> Sizes:
        """Those of a step's members, where a thumb has its mismatched answer beside its own."""
        lengths = self.lengths[list(members)]
        for answers, member in zip(lengths[:, 1:], members, strict=True):
            if member in mismatched:
                answers[answers == 0] = self.lengths[mismatched[member], 1:].sum()
        return Sizes(lengths, self.prompts[list(members)])


@dataclass(frozen=True)
class Step:
    """The examples of one optimiser step."""

    micro_batches: tuple[MicroBatch, ...]
    mismatched: dict[int, int]  # thumb -> the thumb whose answer is its mismatched one, for KTO's baseline

    @property
    def members(self) -> list[int]:
        return [example for batch in self.micro_batches for example in batch]


@dataclass(frozen=True)
class Plan:
    """All steps of one epoch, and how the epochs follow each other."""

    layout: Layout
    sizes: Sizes
    pairs: Indices  # in the order of training
    thumbs: Indices
    steps: int
    token_budget: int
    workers: int
    seed: int
    mismatched: bool  # whether thumbs are compared with each other's answers

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> Step:
        """Step `number`, from 0."""
        if not 0 <= number < self.steps:
            raise IndexError(number)
        pairs, thumbs = self._part(self.pairs, number), self._part(self.thumbs, number)
        members, mismatched = [*pairs, *thumbs], _rotated(thumbs) if self.mismatched else {}
        batches = micro_batches(self.sizes.of(members, mismatched), self.layout, self.token_budget, self.workers)
        return Step(tuple(tuple(members[n] for n in batch) for batch in batches), mismatched)

    def _part(self, order: Indices, number: int) -> list[int]:
        start, stop = (len(order) * (number + n) // self.steps for n in (0, 1))
        return order[start:stop].tolist()

    @property
    def _settings(self) -> tuple[object, ...]:
        return self.layout, self.steps, self.token_budget, self.workers, self.seed, self.mismatched

    def __iter__(self) -> Iterator[Step]:
        return (self[number] for number in range(self.steps))

    def schedule(self, epochs: int) -> Iterator[int]:
        """The number of each step of the round in turn. Later epochs reorder the steps and leave each as it is."""
        for epoch in range(epochs):
            order = np.arange(self.steps)
            if epoch:
                np.random.default_rng((self.seed, epoch)).shuffle(order)
            yield from order.tolist()

    def tokens(self, step: Step, batch: MicroBatch) -> int:
        """Tokens of a micro-batch, padding included."""
        return _tokens(self.sizes.of(batch, step.mismatched), range(len(batch)), self.layout)

    @property
    def digest(self) -> str:
        """The sha256 hex digest of everything that decides which examples are computed together."""
        digest = hashlib.sha256(repr(self._settings).encode())
        for array in (self.sizes.lengths, self.sizes.prompts, self.pairs, self.thumbs):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def make_plan(
    sizes: Sizes,
    layout: Layout,
    *,
    per_step: int,
    token_budget: int,
    seed: int | None,
    workers: int = 1,
    mismatched: bool = True,
) -> Plan:
    """Steps of `per_step` pairs, drawn by `seed` so that pairs of one prompt stay together; None: as they come.

    Thumbs are spread evenly over the steps of the pairs; alone, `per_step` of them make a step. KTO's baseline wants
    `mismatched` answers for them; no other loss does.
    """
    pairs, thumbs = np.flatnonzero(sizes.is_pair), np.flatnonzero(~sizes.is_pair)
    if seed is not None:
        pairs, thumbs = _shuffled(pairs, sizes.prompts, seed), _shuffled(thumbs, sizes.prompts, seed)
    leading = len(pairs) or len(thumbs)
    return Plan(layout, sizes, pairs, thumbs, -(-leading // per_step), token_budget, workers, seed or 0, mismatched)


def micro_batches(sizes: Sizes, layout: Layout, token_budget: int, workers: int) -> tuple[MicroBatch, ...]:
    """The examples in micro-batches of at most `token_budget` tokens: as many for each worker, and of like size.

    Where prompts are shared, examples of one prompt stay together, unless they exceed the budget by themselves. What
    exceeds it and cannot be divided is alone.
    """
    members = range(len(sizes.lengths))
    units = _by_prompt(sizes, token_budget) if layout == "shared" else [[member] for member in members]
    costs = [_tokens(sizes, unit, layout) for unit in units]
    rounds = -(-sum(min(cost, token_budget) for cost in costs) // (token_budget * workers))
    for count in itertools.count(rounds * workers, workers):
        bins = (_neighbours if layout == "dense" else _balanced)(units, costs, min(count, len(units)))
        batches = tuple(tuple(itertools.chain.from_iterable(units_of_bin)) for units_of_bin in bins)
        together = (b for b, units_of_bin in zip(batches, bins, strict=True) if len(units_of_bin) > 1)
        if all(_tokens(sizes, batch, layout) <= token_budget for batch in together):
            return batches
    raise AssertionError("units that are alone need no more micro-batches")


def _by_prompt(sizes: Sizes, token_budget: int) -> list[list[int]]:
    """Examples of one prompt together, in parts that keep to the budget."""
    parts: dict[int, list[list[int]]] = {}
    for member, prompt in enumerate(sizes.prompts.tolist()):
        of_prompt = parts.setdefault(prompt, [[]])
        if of_prompt[-1] and _tokens(sizes, [*of_prompt[-1], member], "shared") > token_budget:
            of_prompt.append([])
        of_prompt[-1].append(member)
    return [part for of_prompt in parts.values() for part in of_prompt]


def _tokens(sizes: Sizes, members: Sequence[int], layout: Layout) -> int:
    """Tokens of the examples' rows, with padding: at most, since an answer that occurs twice is computed once."""
    chosen = list(members)
    lengths, answers = sizes.lengths[chosen], sizes.lengths[chosen, 1:]
    if layout == "dense":
        return int((answers > 0).sum() * (lengths[:, 0] + answers.max(axis=1)).max())
    _, first = np.unique(sizes.prompts[chosen], return_index=True)
    return int(lengths[first, 0].sum() + answers.sum())


def _neighbours(units: list[list[int]], costs: list[int], count: int) -> list[list[list[int]]]:
    """`count` bins of like cost, like with like in each: a row is as wide as the widest of its micro-batch."""
    order = sorted(range(len(units)), key=lambda n: (costs[n], units[n]))
    reached = np.cumsum([costs[n] for n in order])
    edges = [0]
    for number in range(1, count):  # each bin has one unit at least, and leaves one for each bin after it
        wanted = int(np.searchsorted(reached, reached[-1] * number / count, side="right"))
        edges.append(min(max(wanted, edges[-1] + 1), len(order) - (count - number)))
    return [[units[n] for n in order[start:stop]] for start, stop in itertools.pairwise([*edges, len(order)])]


def _balanced(units: list[list[int]], costs: list[int], count: int) -> list[list[list[int]]]:
    """`count` bins of like cost: the most expensive unit first, always into the emptiest bin."""
    bins: list[list[list[int]]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for cost, n in sorted(((cost, n) for n, cost in enumerate(costs)), key=lambda of: (-of[0], of[1])):
        filled, number = heapq.heappop(emptiest)
        bins[number].append(units[n])
        heapq.heappush(emptiest, (filled + cost, number))
    return bins


def _rotated(thumbs: Sequence[int]) -> dict[int, int]:
    """Each thumb with the one before it, and the first with the last: TRL's rotation, over the whole step."""
    return dict(zip(thumbs, [*thumbs[-1:], *thumbs[:-1]], strict=True)) if len(thumbs) > 1 else {}


def _shuffled(indices: Indices, prompts: NDArray[np.int64], seed: int) -> Indices:
    """Prompts in random order, and the indices of each prompt one after the other."""
    _, prompt = np.unique(prompts[indices], return_inverse=True)
    place = np.random.default_rng(seed).permutation(int(prompt.max(initial=-1)) + 1)
    return indices[np.argsort(place[prompt], kind="stable")]
