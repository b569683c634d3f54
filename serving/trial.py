"""What a candidate says before anybody is answered by it: its log-probs of known answers, and answers of its own.

The candidate need not be published. It is fetched, verified and loaded as by `prepare`, and stays loaded until it is
promoted or abandoned. Nothing said here is recorded as a completion, and nobody can vote on it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar

from serving.contracts import AdapterFiles, Answer, Ask, EngineOutput, Said, Sampled, Scores
from serving.errors import RequestRefused
from serving.ports import Engine
from serving.shelf import Shelf

T = TypeVar("T")
STICKY = "trial"  # names an adapter outright, so no draw depends on it


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
        pin = await self._shelf.try_out(files)
        try:
            logprobs = await _all(self._engine.score(files.name, answer) for answer in answers)
        finally:
            pin.release()
        return Scores(replica=self._replica, dtype=self._engine.dtype, logprobs=logprobs)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """What `name` answers: a candidate, whose files are given and which stays loaded, or what is served already.

        At most `at_once` run at a time, so that users find room in the engine meanwhile. Raises what loading raises, and
        `UnknownModel`.
        """
        pin = await (self._shelf.pin(name, STICKY) if files is None else self._shelf.try_out(files))
        places = asyncio.Semaphore(at_once)

        async def said(ask: Ask) -> Said:
            async with places:
                return await self._said(name, ask)

        try:
            answers = await _all(said(ask) for ask in asks)
        finally:
            pin.release()
        return Sampled(replica=self._replica, answers=answers)

    async def _said(self, name: str, ask: Ask) -> Said:
        heard: list[EngineOutput] = []

        async def keep(output: EngineOutput) -> None:
            heard.append(output)

        body = {
            "model": name,
            "messages": [*ask.messages],
            "max_tokens": min(ask.max_tokens, self._engine.context_tokens // 2),
            "temperature": ask.temperature,
            "seed": ask.seed,
        }
        began = time.monotonic()
        try:
            await self._engine.chat(body, f"chatcmpl-{uuid.uuid4().hex}", keep)
        except RequestRefused:
            return Said(text="", tokens=0, finish_reason="refused", seconds=time.monotonic() - began)
        seconds = time.monotonic() - began
        [output] = heard
        if not output.choices:
            return Said(text="", tokens=0, finish_reason=output.outcome, seconds=seconds)
        [choice] = output.choices
        return Said(text=choice.text, tokens=len(choice.token_ids), finish_reason=choice.finish_reason, seconds=seconds)


async def _all(work: Iterable[Awaitable[T]]) -> tuple[T, ...]:
    """All results; none is left behind when one fails."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for failure in (one for one in found if isinstance(one, BaseException)):
        raise failure
    return tuple(one for one in found if not isinstance(one, BaseException))
