"""Which pairs go through the model together, and in which order the optimiser meets them. Pure; knows only lengths.

Fixed once for a round: the reference is taken over the very micro-batches that are trained on, because the last bits
of a log-prob depend on what it is batched with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.pairs import Pair
from training.rows import Layout, row_tokens

MicroBatch = tuple[int, ...]  # indices into the list of pairs that the plan was made for
Step = tuple[MicroBatch, ...]  # the pairs of one optimiser step


@dataclass(frozen=True)
class Plan:
    """The whole round: its layout, the steps of one epoch, and the micro-batches of the held-out pairs."""

    layout: Layout
    epoch: tuple[Step, ...]
    held_out: tuple[MicroBatch, ...]

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """Those of all steps: every training pair once."""
        return [batch for step in self.epoch for batch in step]

    def schedule(self, epochs: int, seed: int) -> list[Step]:
        """All steps of the round. Later epochs reorder the steps and leave the content of each alone."""
        order = list(self.epoch)
        for epoch in range(1, epochs):
            again = list(self.epoch)
            random.Random(f"{seed}/{epoch}").shuffle(again)
            order += again
        return order


def make_plan(
    train: Sequence[Pair],
    held_out: Sequence[Pair],
    layout: Layout,
    *,
    pairs_per_step: int,
    token_budget: int,
    seed: int,
) -> Plan:
    """Steps of `pairs_per_step` pairs drawn at random by `seed`, in micro-batches of `token_budget` tokens."""
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    chunks = [order[start : start + pairs_per_step] for start in range(0, len(order), pairs_per_step)]
    return Plan(
        layout,
        epoch=tuple(micro_batches(train, chunk, layout, token_budget) for chunk in chunks),
        held_out=micro_batches(held_out, range(len(held_out)), layout, token_budget),
    )


def micro_batches(
    pairs: Sequence[Pair], indices: Sequence[int], layout: Layout, token_budget: int
) -> tuple[MicroBatch, ...]:
    """Split the indexed pairs so that each micro-batch's padded rows hold at most `token_budget` tokens.

    Pairs of like length go together, ties in the order of `pair_id`. A pair that alone exceeds the budget goes alone.
    """
    by_length = sorted(indices, key=lambda i: (row_tokens(pairs[i], layout), pairs[i].pair_id))
    batches: list[list[int]] = []
    for i in by_length:
        longest = row_tokens(pairs[i], layout)
        if batches and longest * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return tuple(tuple(batch) for batch in batches)
