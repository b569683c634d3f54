"""The one file that drives vLLM: its AsyncLLM, its OpenAI chat classes, its LoRA registry.

vLLM answers; streaming, n, stop, seed, logprobs, usage and response_format are its own. What we add sits at one
place, `RecordedLLM.generate`: every token the engine samples passes there, so what is recorded is what was
served, token by token, and the record is durable before the last token leaves (invariants 2 and 4).

vLLM's entry points move with every release. `tests/integration/test_engine.py` holds each symbol used here to a
real chat and a real swap.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pydantic
from vllm import AsyncEngineArgs, SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from serving import cpu_lora, machine
from serving.adapters import base_fingerprint, tokenizer_fingerprint
from serving.base_model import linear_layers
from serving.contracts import BASE, Answer, ChatAnswer, Outcome
from serving.errors import AdapterRefused, RequestRefused
from serving.ports import OnEnded, OnSampled, unseen
from serving.recorder import Recorder
from serving.requests import MAX_LOGPROBS
from serving.settings import ServingSettings

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"  # by this name; on a CPU vLLM takes "uni" for "mp"
ID_PREFIX = "chatcmpl-"  # vLLM puts it before the request id we give
_AT_THE_END = 1 << 30  # tokens between the first part and the next; more than any context holds


@dataclass(eq=False)
class _Heard:
    """Who is told of one request."""

    on_ended: OnEnded
    on_sampled: OnSampled
    stopped: bool = False


class RecordedLLM(AsyncLLM):
    """AsyncLLM that hands each request's tokens to whoever asked for them."""

    max_prompt_tokens: int | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._heard: WeakValueDictionary[str, _Heard] = WeakValueDictionary()  # held by what generates

    def listen(self, request_id: str, on_ended: OnEnded, on_sampled: OnSampled) -> _Heard:
        """Await `on_ended` with the output of that request, before its last part is passed on; as long as the result is
        held, or the request runs."""
        heard = self._heard[request_id] = _Heard(on_ended, on_sampled)
        return heard

    async def stop(self, request_id: str) -> None:
        """What generates it ends then, also where it has not begun yet."""
        heard = self._heard.get(request_id)
        if heard is not None:
            heard.stopped = True
            await self.abort(request_id)

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **rest: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        # Looked up at the call, not in the generator's body: that runs only when the first token is asked for.
        heard = self._heard.get(request_id)
        if heard is None:
            return super().generate(prompt, sampling_params, request_id, **rest)
        self._check_length(len(prompt["prompt_token_ids"]))
        whole = sampling_params.output_kind is RequestOutputKind.FINAL_ONLY
        if whole:  # in two parts, so that the first token is seen, and what was sampled before a stop
            sampling_params.output_kind = RequestOutputKind.DELTA
            sampling_params.stream_interval = _AT_THE_END
        parts = super().generate(prompt, sampling_params, request_id, **rest)
        return _recorded(parts, sampling_params.n, heard, whole=whole)

    def _check_length(self, tokens: int) -> None:
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise RequestRefused(
                f"The prompt has {tokens} tokens; the limit is {self.max_prompt_tokens} (serving.max_prompt_tokens).",
                param="messages",
                code="prompt_too_long",
            )


async def _recorded(
    parts: AsyncGenerator[RequestOutput, None], choices: int, heard: _Heard, *, whole: bool
) -> AsyncGenerator[RequestOutput, None]:
    """The parts as they come, or all of them as one; and `heard` is told once how the request ended, unless it was
    refused."""
    recorder, together, told = Recorder(choices), None, False
    outcome: Outcome = "cancelled"
    try:
        async for part in parts if not heard.stopped else _nothing():
            recorder.add(part)
            if together is None or (choices == 1 and not whole):
                heard.on_sampled()
            if part.finished and recorder.complete:
                told = True
                await heard.on_ended(recorder.output())
            if heard.stopped and not part.finished:  # it was stopped while it began
                return
            together = part if together is None or not whole else _joined(together, part)
            if part.finished or not whole:
                yield together
        outcome = "failed" if recorder.broken else outcome
    except (VLLMClientError, GracefulHTTPError):
        told = True
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        try:
            await parts.aclose()  # a client that went away: the engine drops the request now, not at collection
        finally:
            if not told:
                await heard.on_ended(recorder.output(outcome))


def _joined(before: RequestOutput, part: RequestOutput) -> RequestOutput:
    before.add(part, aggregate=True)
    before.outputs.sort(key=lambda output: output.index)
    return before


async def _nothing() -> AsyncGenerator[RequestOutput, None]:
    return
    yield


class VllmEngine:
    """`serving.contracts.Engine` on vLLM."""

    def __init__(self, model: Path, settings: ServingSettings) -> None:
        self.tokenizer_fingerprint = tokenizer_fingerprint(model)
        self.base_fingerprint = base_fingerprint(model)
        self.adapter_capacity = settings.adapter_places
        llm = RecordedLLM.from_engine_args(engine_args(model, settings))
        assert isinstance(llm, RecordedLLM)
        self._llm = llm
        self.dtype = str(llm.model_config.dtype).removeprefix("torch.")
        self.context_tokens = llm.model_config.max_model_len
        self.control_tokens = _control_tokens(llm.get_tokenizer())
        llm.max_prompt_tokens = settings.max_prompt_tokens
        self._models = OpenAIServingModels(self._llm, [BaseModelPath(name=BASE, model_path=str(model))])
        renderer = OnlineRenderer(
            model_config=self._llm.model_config,
            renderer=self._llm.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        self._chat = OpenAIServingChat(
            self._llm,
            self._models,
            response_role="assistant",
            online_renderer=renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        self._chat.override_max_tokens = settings.max_output_tokens  # of requests that name none

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        parsed = _parse(request)
        parsed.request_id = request_id.removeprefix(ID_PREFIX)
        heard = self._llm.listen(request_id, on_ended, on_sampled)  # noqa: F841 - held until the engine holds it
        try:
            answer = await self._chat.create_chat_completion(parsed, None)
        except EngineDeadError:
            raise
        except (VLLMError, ValueError, TypeError, OverflowError) as error:
            raise _refusal(create_error_response(error)) from error
        if isinstance(answer, ErrorResponse):
            raise _refusal(answer)
        if isinstance(answer, ChatCompletionResponse):
            assert answer.id == request_id
            return ChatAnswer(request_id, str(request["model"]), body=answer.model_dump(exclude_none=True))
        return ChatAnswer(request_id, str(request["model"]), stream=answer)

    async def stop(self, request_id: str) -> None:
        await self._llm.stop(request_id)

    async def load(self, name: str, directory: str) -> None:
        answer = await self._models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=directory))
        if isinstance(answer, ErrorResponse):
            raise AdapterRefused(f"adapter {name}: vLLM does not load it: {answer.error.message}")

    async def warm_up(self, name: str) -> None:
        lora = None if name == BASE else self._models.lora_requests[name]
        params = SamplingParams(max_tokens=1, temperature=0.0)
        prompt: Any = {"prompt_token_ids": [0]}
        async for _ in self._llm.generate(prompt, params, f"warm-up-{name}", lora_request=lora):
            pass

    async def score(self, name: str, answer: Answer) -> tuple[float, ...]:
        token_ids = (*answer.prompt_token_ids, *answer.token_ids)
        token_ids = token_ids[: self._llm.model_config.max_model_len - 1]  # vLLM always samples one token more
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, skip_reading_prefix_cache=True)
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        lora, scored = self._models.lora_requests[name], None
        async for output in self._llm.generate(prompt, params, f"score-{uuid.uuid4().hex}", lora_request=lora):
            scored = output.prompt_logprobs or scored
        assert scored is not None and len(scored) == len(token_ids), "vLLM answers with the log-prob of every token"
        first = len(answer.prompt_token_ids)
        of_answer = zip(token_ids[first:], scored[first:], strict=True)
        return tuple(among[token].logprob for token, among in of_answer if among is not None)

    async def unload(self, name: str) -> None:
        lora = self._models.lora_requests.pop(name)  # vLLM's own unload forgets the name but keeps the weights
        await self._llm.remove_lora(lora.lora_int_id)

    async def check_health(self) -> None:
        await self._llm.check_health()

    def shutdown(self) -> None:
        self._llm.shutdown()


def engine_args(model: Path, settings: ServingSettings) -> AsyncEngineArgs:
    """vLLM's settings for this machine.

    On a CPU, vLLM's own LoRA applies the last slot to base-model rows when a batch mixes base and adapter (its index
    -1 wraps around). Where `cpu_lora.py` cannot take its place, one slot more than we ever fill keeps that last slot
    zero, so base rows stay untouched.

    The head is kept out of LoRA: no adapter of ours changes it, and vLLM's LoRA around it takes the log-probs of a
    prompt for those of the batch's samples, which on a CPU kills the engine, and costs every sampled token time.

    On a CPU the scheduler and the model share a process: vLLM's second one would pass every step's batch and tokens
    from core to core, and wait for them busily on one that computes.
    """
    cpu, here = current_platform.is_cpu(), machine.Machine.here()
    spare = 1 if cpu and not cpu_lora.in_use() else 0
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if cpu else "bfloat16"
    slots = settings.adapter_places + spare
    return AsyncEngineArgs(
        model=str(model),
        dtype=dtype,
        max_model_len=settings.max_model_len,  # pyright: ignore[reportArgumentType]  None is vLLM's own default
        max_num_seqs=settings.max_requests,
        enable_lora=True,
        max_loras=slots,
        max_cpu_loras=slots,
        max_lora_rank=settings.max_lora_rank,
        lora_target_modules=linear_layers(model),
        enforce_eager=cpu and not machine.compiled(settings, here),
        distributed_executor_backend=ONE_PROCESS if cpu else None,
        enable_prefix_caching=settings.prefix_caching,
        gpu_memory_utilization=settings.gpu_memory_share,
        kv_cache_memory_bytes=machine.kv_cache_bytes(settings, here) if cpu else None,
        max_logprobs=MAX_LOGPROBS,
        limit_mm_per_prompt={},
        trust_remote_code=False,
        disable_log_stats=True,
        enable_log_requests=False,
        generation_config="vllm",  # sampling defaults are OpenAI's, not whatever the model's directory says
    )


def _control_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts that the tokenizer reads as one special token, wherever they stand."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | {*tokenizer.all_special_tokens})


def _parse(request: dict[str, Any]) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate(request)
    except VLLMError as error:
        raise _refusal(create_error_response(error)) from error
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else None
        where = f"'{field}': " if field else ""
        raise RequestRefused(f"{where}{fault['msg']}.", param=field, code="invalid_value") from error


def _refusal(answer: ErrorResponse) -> RequestRefused:
    error = answer.error
    return RequestRefused.by_engine(error.message, status=int(error.code), param=error.param)
