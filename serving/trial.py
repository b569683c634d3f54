"""What a candidate says before anybody is answered by it: the log-probs it gives to known answers.

The candidate need not be published. It is fetched, verified and loaded as by `prepare`, and stays loaded until it is
promoted or abandoned. Nothing said here is recorded as a completion, and nobody can vote on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serving.contracts import AdapterFiles, Answer, Engine, Scores
from serving.shelf import Shelf


class Trial:
    """One per replica."""

    def __init__(self, replica: str, engine: Engine, shelf: Shelf) -> None:
        self._replica = replica
        self._engine = engine
        self._shelf = shelf

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """Log-probs of the answers under a candidate, published or not. It stays loaded, as after `prepare`.

        Raises what loading raises. All answers at once: how many tokens go through the model together, and with them
        the memory of their logits, is bounded by the engine and not by their number.
        """
        pin = await self._shelf.try_out(files.name, files)
        try:
            scoring = (self._engine.score(files.name, answer) for answer in answers)
            found = await asyncio.gather(*scoring, return_exceptions=True)  # none is left behind when one fails
        finally:
            pin.release()
        for failure in (one for one in found if isinstance(one, BaseException)):
            raise failure
        logprobs = tuple(one for one in found if not isinstance(one, BaseException))
        return Scores(replica=self._replica, dtype=self._engine.dtype, logprobs=logprobs)
