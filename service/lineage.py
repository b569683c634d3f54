"""Which adapters came before which: from the adapter that answers back to the base. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from service.contracts import Adapter
from serving.contracts import BASE


def ancestry(name: str, adapters: Collection[Adapter]) -> list[int]:
    """The rounds that made the adapter what it is, its own first. Those it only came through from outside are none."""
    return [a.round for a in _line(name, adapters) if a.added_by is None and a.round is not None]


def behind(name: str, adapters: Collection[Adapter]) -> dict[str, int]:
    """Of every adapter, how many came into the line of `name` since: 0 for `name` itself, the most for the base.

    What counts is descent, not the calendar: after a rollback the adapter that answers again is the newest there is. An
    adapter that is no ancestor, such as one that was rolled back, stands where its line leaves that of `name`.
    """
    line = [adapter.name for adapter in _line(name, adapters)]
    steps = {ancestor: distance for distance, ancestor in enumerate([*line, BASE])}
    return steps | {
        adapter.name: next((steps[a.name] for a in _line(adapter.name, adapters) if a.name in steps), steps[BASE])
        for adapter in adapters
        if adapter.name not in steps
    }


def descendants(rounds: Collection[int], adapters: Collection[Adapter]) -> tuple[str, ...]:
    """The adapters that one of these rounds trained, and all that continue one of those; in the order of their making."""
    trained = {a.name for a in adapters if a.added_by is None and a.round in rounds}
    tainted = [a for a in adapters if trained & {ancestor.name for ancestor in _line(a.name, adapters)}]
    return tuple(a.name for a in sorted(tainted, key=lambda a: a.ordinal))


def _line(name: str, adapters: Collection[Adapter]) -> Iterator[Adapter]:
    """The adapter, what it continues, and so on; without the base."""
    known = {adapter.name: adapter for adapter in adapters}
    while (adapter := known.pop(name, None)) is not None:  # each once: a parent that was made up leads nowhere
        yield adapter
        name = adapter.parent
