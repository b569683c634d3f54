"""One request from its body to its answer: checked, admitted, pinned to one adapter, recorded. No Ray, no vLLM.

Knows nothing of swaps: `shelf.py` says which adapter answers, and the pin keeps it there until the answer has ended.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from serving import requests
from serving.contracts import Caller, ChatAnswer, Completion, Engine, EngineOutput, Journal
from serving.meter import Meter
from serving.pins import PinnedStream
from serving.rateable import Record, marked, unrateable
from serving.settings import ServingSettings
from serving.shelf import Shelf


class Desk:
    """One per replica."""

    def __init__(self, engine: Engine, journal: Journal, shelf: Shelf, meter: Meter, settings: ServingSettings) -> None:
        self._engine = engine
        self._journal = journal
        self._shelf = shelf
        self._meter = meter
        self._settings = settings
        self.unlogged = 0  # answers since the start that could not be recorded

    async def chat(self, body: Any, caller: Caller) -> ChatAnswer:
        """Answer an OpenAI chat body. Raises `RequestRefused` and `UnknownModel`; records what was sampled."""
        request = requests.check(body)
        await self._journal.ready()
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        pin = await self._shelf.pin(request["model"])
        record = Record()

        async def keep(output: EngineOutput) -> None:
            completion = self._completion(completion_id, pin.adapter, body, caller, output)
            record.durable = await self._journal.record(completion)
            self.unlogged += not record.durable

        try:
            answer = await self._engine.chat({**request, "model": pin.adapter}, completion_id, keep)
        except BaseException:
            pin.release()
            raise
        if answer.stream is None:
            pin.release()
            return answer if record.durable else unrateable(answer)
        return ChatAnswer(completion_id, pin.adapter, stream=PinnedStream(marked(answer.stream, record), pin))

    def _completion(
        self, completion_id: str, adapter: str, body: dict[str, Any], caller: Caller, output: EngineOutput
    ) -> Completion:
        return Completion(
            id=completion_id,
            app=caller.app,
            adapter=adapter,
            model=body["model"],
            created_at=datetime.now(UTC),
            user=body.get("user"),
            metadata=body.get("metadata") or {},
            store=body.get("store") is not False,
            messages=body["messages"],
            sampling=requests.sampling(body),
            tokenizer_fingerprint=self._engine.tokenizer_fingerprint,
            prompt_token_ids=output.prompt_token_ids,
            choices=output.choices,
            outcome=output.outcome,
        )
