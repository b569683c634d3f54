"""One request from its body to its answer: checked, admitted, pinned to one adapter, recorded. No Ray, no vLLM.

Knows nothing of swaps: `shelf.py` says which adapter answers, and the pin keeps it there until the engine has let go.
Once the engine was asked, the request leaves a record, however it ends: finished, cancelled by a client that went away
or by a deadline, failed. The engine's work and the record outlive the request's own task, which a disconnect ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from serving import requests, routing
from serving.admission import Admission
from serving.contracts import Caller, ChatAnswer, Completion, EngineOutput
from serving.errors import NoRoom, Overloaded, RequestRefused, UnknownModel
from serving.meter import Meter
from serving.ports import Engine, Journal
from serving.reply import Reply, unrateable
from serving.settings import ServingSettings
from serving.shelf import Shelf
from serving.turn import Deadlines, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")
CLOSE_SECONDS = 10.0  # a hung engine must not keep a replica from stopping
NOTHING_SAMPLED = EngineOutput(prompt_token_ids=(), choices=(), outcome="failed")


class Desk:
    """One per replica."""

    def __init__(self, engine: Engine, journal: Journal, shelf: Shelf, meter: Meter, settings: ServingSettings) -> None:
        self._engine = engine
        self._journal = journal
        self._shelf = shelf
        self._meter = meter
        self._limits = requests.Limits(
            max_choices=settings.max_choices,
            max_output_tokens=settings.max_output_tokens,
            control_tokens=engine.control_tokens,
        )
        self._deadlines = Deadlines(settings.first_token_seconds, settings.answer_seconds)
        self._admission = Admission(
            settings.max_requests,
            max_waiting=settings.max_waiting,
            max_waiting_seconds=settings.max_waiting_seconds,
        )
        self._tasks: set[asyncio.Task[Any]] = set()  # that outlive their requests
        self.unlogged = 0  # answers since the start that could not be recorded

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the engine."""
        return self._admission.waiting

    async def chat(self, body: Any, caller: Caller) -> ChatAnswer:
        """Answer an OpenAI chat body. Raises `RequestRefused`, `UnknownModel`, `NoRoom`, `Overloaded` and
        `DeadlineExceeded`; records what was sampled."""
        began = asyncio.get_running_loop().time()
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"  # never the caller's
        try:
            request = requests.check(body, self._limits)
            await self._journal.ready()
            turn = await self._turn(request, body, caller, completion_id, began)
        except BaseException as error:
            self._count(error)
            caller.ended(0)
            raise
        ask = self._ask(request, body, caller, turn)
        try:
            return await (self._stream(ask, turn) if request.get("stream") else self._whole(ask, turn))
        except RequestRefused as error:
            self._count(error)
            raise

    async def close(self) -> None:
        """Returns when all that was sampled is recorded, or after `CLOSE_SECONDS`. No request may come any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def _turn(
        self, request: dict[str, Any], body: dict[str, Any], caller: Caller, completion_id: str, began: float
    ) -> Turn:
        """Waits for a place before it asks for an adapter: who waits is answered by what is served then."""
        place = await self._admission.enter(request.get("n") or 1)
        try:
            sticky = routing.sticky_key(caller.app, body.get("user"), body.get("metadata"), completion_id)
            pin = await self._shelf.pin(request["model"], sticky)
        except BaseException:
            place.release()
            raise
        return Turn(
            completion_id,
            began=began,
            place=place,
            pin=pin,
            deadlines=self._deadlines,
            meter=self._meter,
            ended=caller.ended,
        )

    async def _ask(self, request: dict[str, Any], body: dict[str, Any], caller: Caller, turn: Turn) -> ChatAnswer:
        """The engine's answer. Whatever comes of it, the turn ends with it and what was sampled is recorded."""
        recorded = False

        async def ended(output: EngineOutput) -> None:
            nonlocal recorded
            recorded = True
            completion = self._completion(turn, body, request, caller, output)
            keeping = self._outlives(self._keep(completion))
            try:
                if output.outcome == "finished":  # else nobody waits for it
                    turn.durable = await asyncio.shield(keeping)
            finally:
                turn.end(output)

        try:
            engine_request = {**request, "model": turn.adapter}
            return await self._engine.chat(engine_request, turn.completion_id, ended, turn.sampled)
        except (RequestRefused, asyncio.CancelledError):
            turn.end()
            raise
        except BaseException:
            if not recorded:
                await ended(NOTHING_SAMPLED)
            turn.end()
            raise

    async def _stream(self, ask: Coroutine[Any, Any, ChatAnswer], turn: Turn) -> ChatAnswer:
        answer = await ask
        assert answer.stream is not None, "the engine streams what is asked for as a stream"
        reply = Reply(answer.stream, turn)
        await reply.begin()
        return replace(answer, stream=reply)

    async def _whole(self, ask: Coroutine[Any, Any, ChatAnswer], turn: Turn) -> ChatAnswer:
        work = self._outlives(ask)
        late = asyncio.get_running_loop().create_future()
        turn.on_late = lambda: late.set_result(None)
        try:
            await asyncio.wait((work, late), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():  # its client has gone, or its time is up
                self._outlives(self._engine.stop(turn.completion_id))
        if not work.done():
            assert turn.late is not None
            raise turn.late
        answer = work.result()
        assert answer.body is not None, "the engine answers at once what is not asked for as a stream"
        return answer if turn.durable else replace(answer, body=unrateable(answer.body), rateable=False)

    async def _keep(self, completion: Completion) -> bool:
        began = asyncio.get_running_loop().time()
        durable = await self._journal.record(completion)
        self._meter.recorded(completion.outcome, asyncio.get_running_loop().time() - began, durable=durable)
        if completion.outcome == "finished":
            self.unlogged += not durable
        return durable

    def _completion(
        self,
        turn: Turn,
        body: dict[str, Any],
        request: dict[str, Any],
        caller: Caller,
        output: EngineOutput,
    ) -> Completion:
        self._meter.ended(
            turn.adapter,
            output.outcome,
            turn.seconds,
            prompt_tokens=len(output.prompt_token_ids),
            answer_tokens=tuple(len(choice.token_ids) for choice in output.choices),
        )
        return Completion(
            id=turn.completion_id,
            app=caller.app,
            adapter=turn.adapter,
            model=body["model"],
            created_at=datetime.now(UTC),
            user=body.get("user"),
            metadata=body.get("metadata") or {},
            store=body.get("store") is not False,
            messages=request["messages"],
            sampling=requests.sampling(body),
            tokenizer_fingerprint=self._engine.tokenizer_fingerprint,
            prompt_token_ids=output.prompt_token_ids,
            choices=output.choices,
            outcome=output.outcome,
            first_token_seconds=turn.first_token_seconds,
            seconds=turn.seconds,
        )

    def _count(self, error: BaseException) -> None:
        if isinstance(error, UnknownModel):
            self._meter.refused("model_not_found")
        elif isinstance(error, NoRoom):
            self._meter.refused("adapter_places_full")
        elif isinstance(error, (RequestRefused, Overloaded)):
            self._meter.refused(error.code or "invalid_request")

    def _outlives(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that a disconnect does not end; kept until it is done, and its failure is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a request ended with %s", error)
