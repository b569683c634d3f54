"""Adapters that were refused a moment ago, and why: finding out again costs a download and a check of every weight."""

from __future__ import annotations

from collections.abc import Callable, Collection

from serving.errors import AdapterRefused

FAULT_SECONDS = 30.0  # until it is worth another look


class Faults:
    """One per replica."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._found: dict[str, tuple[float, str]] = {}  # adapter -> (when it is worth another look, what is wrong)

    @property
    def fresh(self) -> frozenset[str]:
        now = self._clock()
        return frozenset(name for name, (until, _) in self._found.items() if now < until)

    def note(self, name: str, refusal: AdapterRefused) -> None:
        self._found[name] = (self._clock() + FAULT_SECONDS, str(refusal))

    def mended(self, name: str) -> None:
        self._found.pop(name, None)

    def check(self, name: str) -> None:
        """Raises `AdapterRefused` for one that was refused a moment ago."""
        if name in self.fresh:
            raise AdapterRefused(self._found[name][1])

    def of(self, names: Collection[str]) -> str | None:
        """What is wrong with these; None: nothing is known."""
        return "; ".join(self._found[name][1] for name in sorted(names) if name in self._found) or None

    def forget_all_but(self, names: Collection[str]) -> None:
        fresh = self.fresh
        self._found = {name: found for name, found in self._found.items() if name in fresh or name in names}
