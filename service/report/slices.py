"""The data report's parts: by source, app, adapter and tag, the largest of each kind. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import log

from service.pairs import Pair
from service.report.evidence import SliceKind, SliceVotes
from service.report.formulas import geometric_mean
from service.report.records import Share, Slice

SLICES_SHOWN = 12  # of each kind

_NAMES: dict[SliceKind, Callable[[Pair], Iterable[str]]] = {
    "source": lambda pair: (pair.source.value,),
    "app": lambda pair: () if pair.app is None else (pair.app,),
    "adapter": lambda pair: set(pair.adapters),
    "tag": lambda pair: set(pair.tags),
}


def slices(pairs: Sequence[Pair], votes: Iterable[SliceVotes]) -> tuple[tuple[Slice, ...], dict[SliceKind, int]]:
    """The largest of each kind, and how many more there are: whoever sends tags may send very many."""
    voted = {(part.kind, part.name): part for part in votes}
    shown: list[Slice] = []
    hidden: dict[SliceKind, int] = {}
    for kind, names in _NAMES.items():
        held: defaultdict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            for name in names(pair):
                held[name].append(pair)
        known = held.keys() | {name for of_kind, name in voted if of_kind == kind}
        parts = [_slice(kind, name, held.get(name, []), len(pairs), voted.get((kind, name))) for name in known]
        parts.sort(key=lambda part: (-part.pairs, -(part.votes or 0), part.name))
        shown += parts[:SLICES_SHOWN]
        if len(parts) > SLICES_SHOWN:
            hidden[kind] = len(parts) - SLICES_SHOWN
    return tuple(shown), hidden


def mean_length_ratio(pairs: Iterable[Pair]) -> float | None:
    """Chosen to rejected in characters, geometric, of the pairs whose two answers both have some."""
    lengths = [(pair.chosen_length, pair.rejected_length) for pair in pairs]
    return geometric_mean([log(chosen / rejected) for chosen, rejected in lengths if chosen > 0 and rejected > 0])


def _slice(kind: SliceKind, name: str, held: Sequence[Pair], pairs: int, votes: SliceVotes | None) -> Slice:
    return Slice(
        kind=kind,
        name=name,
        pairs=len(held),
        share=len(held) / pairs if pairs else None,
        votes=None if votes is None else votes.votes,
        liked=Share.of(0, 0) if votes is None else Share.of(votes.up, votes.up + votes.down),
        mean_length_ratio=mean_length_ratio(held),
    )
