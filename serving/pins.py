"""Which requests run on which adapter: counted, so that none is taken away under a running answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator


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


class PinnedStream:
    """A stream that gives its pin back when it ends, fails, is closed, or is dropped before it ever began."""

    def __init__(self, stream: AsyncIterator[str], pin: Pin) -> None:
        self._stream = stream
        self._pin = pin

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            return await anext(self._stream)
        except BaseException:  # the end, an error or a cancellation: in each case the request is over
            self._pin.release()
            raise

    async def aclose(self) -> None:
        self._pin.release()
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        self._pin.release()
