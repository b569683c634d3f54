"""Which requests run on which adapter: counted, so that none is taken away under a running answer."""

from __future__ import annotations

from collections import Counter


class Pin:
    """Counts one request as running on one adapter, until released; releasing twice counts once."""

    def __init__(self, in_flight: Counter[str], adapter: str) -> None:
        self._in_flight = in_flight
        self.adapter = adapter
        self._held = True
        in_flight[adapter] += 1

    def release(self) -> None:
        if self._held:
            self._held = False
            self._in_flight[self.adapter] -= 1
