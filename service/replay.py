"""Which pairs of earlier rounds a round learns again, so that it does not forget them. Pure.

Only what the deployed adapter and its ancestors were trained on: pairs of a round that was rejected, failed or rolled
back are no part of what it could forget.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from service.digest import content_digest
from service.pairs import Pair


def choose(
    older: Sequence[Pair], new: int, share: float, held_out_prompts: AbstractSet[str], *, seed: int, round: int
) -> list[Pair]:
    """As many of `older` as make up `share` of all training pairs, beside `new` new ones; fewer where there are fewer.

    Pairs are ranked by a digest of their id, the seed and the round: as good as chance, another choice in every round,
    and the same whenever the round is repeated. A prompt that this round holds out is not replayed.
    """
    count = replayed(new, share)
    free = [pair for pair in older if pair.prompt_digest not in held_out_prompts]
    return sorted(free, key=lambda pair: content_digest([seed, round, pair.id]))[:count]


def replayed(new: int, share: float) -> int:
    """r with r / (new + r) = share."""
    return round(new * share / (1 - share))
