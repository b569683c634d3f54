"""Which adapters came before which: from the adapter that answers back to the base. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from service.contracts import Adapter
from serving.contracts import BASE


def ancestry(name: str, adapters: Collection[Adapter]) -> list[int]:
    """The rounds that made the adapter what it is, its own first. Those it only came through from outside are none."""
    known = {adapter.name: adapter for adapter in adapters}
    line = (known[ancestor] for ancestor in _line(name, _parents(adapters)))
    return [a.round for a in line if a.added_by is None and a.round is not None]


def behind(name: str, parents: Mapping[str, str]) -> dict[str, int]:
    """Of every adapter, how many came into the line of `name` since: 0 for `name` itself, the most for the base.

    What counts is descent, not the calendar: after a rollback the adapter that answers again is the newest there is. An
    adapter that is no ancestor, such as one that was rolled back, stands where its line leaves that of `name`.
    `parents`: what each adapter continues. Each is looked at once, for it is asked after every swap.
    """
    steps = {ancestor: distance for distance, ancestor in enumerate([*_line(name, parents), BASE])}
    for adapter in parents:
        aside = list[str]()
        for one in [*_line(adapter, parents), BASE]:
            if one in steps:  # the base is, at the latest
                steps |= dict.fromkeys(aside, steps[one])
                break
            aside.append(one)
    return steps


def descendants(rounds: Collection[int], adapters: Collection[Adapter]) -> tuple[str, ...]:
    """The adapters that one of these rounds trained, and all that continue one of those; in the order of their making."""
    trained, parents = {a.name for a in adapters if a.added_by is None and a.round in rounds}, _parents(adapters)
    tainted = [a for a in adapters if not trained.isdisjoint(_line(a.name, parents))]
    return tuple(a.name for a in sorted(tainted, key=lambda a: a.ordinal))


def _parents(adapters: Collection[Adapter]) -> dict[str, str]:
    return {adapter.name: adapter.parent for adapter in adapters}


def _line(name: str, parents: Mapping[str, str]) -> Iterator[str]:
    """The adapter, what it continues, and so on; without the base."""
    seen = set[str]()
    while name in parents and name not in seen:  # each once: a parent that was made up leads nowhere
        yield name
        seen.add(name)
        name = parents[name]
