"""An engine that answers with the seedling itself, without vLLM: PEFT merges the adapters, PyTorch samples the tokens.

Requests that arrive together are sampled together. What is said depends on the request and its seed alone, so one that
is sent again is answered the same.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from serving.contracts import BASE, Answer, ChatAnswer, Choice, EngineOutput
from serving.errors import AdapterRefused
from serving.ports import OnEnded, OnSampled, unseen
from training.fingerprints import fingerprints
from training.seedling import END, PAD

LONGEST = 48  # tokens of an answer; the seedling's own are shorter
GATHERING_SECONDS = 0.01  # in which requests may still join those that are sampled together
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class _Wanted:
    prompt: list[int]
    choices: int
    tokens: int
    temperature: float
    luck: Tensor  # [choices, tokens] in [0, 1): where in the distribution each token is read off
    sampled: asyncio.Future[list[list[int]]]


class SeedlingEngine:
    """`serving.contracts.Engine`, but for streams. Computes in float32, on as many threads as PyTorch has."""

    adapter_capacity = 8
    dtype = "float32"
    control_tokens: frozenset[str] = frozenset()

    def __init__(self, model: Path) -> None:
        self._directory = model
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._policies = {BASE: _read(model)}
        self._waiting: defaultdict[str, list[_Wanted]] = defaultdict(list)  # adapter -> requests
        self._sampling: asyncio.Task[None] | None = None
        found = fingerprints(model)
        self.tokenizer_fingerprint, self.base_fingerprint = found.tokenizer, found.base_model
        self.context_tokens = int(self._policies[BASE].config.max_position_embeddings)

    async def chat(
        self, request: dict[str, Any], request_id: str, on_ended: OnEnded, on_sampled: OnSampled = unseen
    ) -> ChatAnswer:
        assert not request.get("stream"), "this engine answers as a whole"
        wanted = self._wanted(request)
        self._waiting[request["model"]].append(wanted)
        if self._sampling is None or self._sampling.done():
            self._sampling = asyncio.create_task(self._sample())
        choices = tuple(self._choice(index, ids) for index, ids in enumerate(await wanted.sampled))
        on_sampled()
        await on_ended(EngineOutput(tuple(wanted.prompt), choices))
        said = [
            {"index": c.index, "message": {"role": "assistant", "content": c.text}, "finish_reason": c.finish_reason}
            for c in choices
        ]
        return ChatAnswer(request_id, request["model"], body={"id": request_id, "choices": said})

    def _wanted(self, request: dict[str, Any]) -> _Wanted:
        messages, choices = request["messages"], request.get("n") or 1
        tokens = min(request.get("max_tokens") or LONGEST, LONGEST)
        dice = torch.Generator().manual_seed(zlib.crc32(json.dumps([messages, request.get("seed")]).encode()))
        return _Wanted(
            prompt=self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
            choices=choices,
            tokens=tokens,
            temperature=float(request.get("temperature", 1.0)),
            luck=torch.rand(choices, tokens, generator=dice),
            sampled=asyncio.get_running_loop().create_future(),
        )

    async def _sample(self) -> None:
        """Until nobody waits."""
        while self._waiting:
            await asyncio.sleep(GATHERING_SECONDS)
            name, wanted = self._waiting.popitem()
            together: list[_Wanted] = []
            for one in wanted:
                if together and sum(each.choices for each in together) + one.choices > ROWS_AT_ONCE:
                    await self._answer(name, together)
                    together = []
                together.append(one)
            await self._answer(name, together)

    async def _answer(self, name: str, wanted: Sequence[_Wanted]) -> None:
        rows = iter(await asyncio.to_thread(_generate, self._policies[name], wanted))
        for one in wanted:
            one.sampled.set_result([next(rows) for _ in range(one.choices)])

    def _choice(self, index: int, ids: list[int]) -> Choice:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Choice(
            index=index, text=text, token_ids=tuple(ids), finish_reason="stop" if ids[-1] == END else "length"
        )

    async def score(self, name: str, answer: Answer) -> tuple[float, ...]:
        return await asyncio.to_thread(_score, self._policies[name], answer)

    async def load(self, name: str, directory: str) -> None:
        try:
            policy = PeftModel.from_pretrained(_read(self._directory), directory).merge_and_unload()  # pyright: ignore
        except (OSError, ValueError, RuntimeError) as error:
            raise AdapterRefused(f"PEFT does not load {name}: {error}") from error
        self._policies[name] = policy.eval()

    async def unload(self, name: str) -> None:
        del self._policies[name]

    async def warm_up(self, name: str) -> None:
        assert name in self._policies

    async def stop(self, request_id: str) -> None:
        """Every request is over soon."""

    async def check_health(self) -> None: ...

    def shutdown(self) -> None: ...


def _read(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@torch.no_grad()
def _score(policy: PreTrainedModel, answer: Answer) -> tuple[float, ...]:
    ids = torch.tensor([[*answer.prompt_token_ids, *answer.token_ids]])
    logits = policy(input_ids=ids).logits[0, len(answer.prompt_token_ids) - 1 : -1]  # [tokens, vocabulary]
    scores = logits.log_softmax(-1).gather(-1, torch.tensor(answer.token_ids)[:, None])
    return tuple(scores[:, 0].tolist())


@torch.no_grad()
def _generate(policy: PreTrainedModel, wanted: Sequence[_Wanted]) -> list[list[int]]:
    """Token ids of every choice, request by request; each ends with END, or is as long as was asked for."""
    prompts = [one.prompt for one in wanted for _ in range(one.choices)]
    limits = torch.tensor([one.tokens for one in wanted for _ in range(one.choices)])
    heat = torch.tensor([one.temperature for one in wanted for _ in range(one.choices)])[:, None]
    luck = torch.cat([torch.nn.functional.pad(one.luck, (0, LONGEST - one.tokens)) for one in wanted])
    longest = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])  # [rows, prompt tokens]
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache, said, over = None, [], torch.zeros(len(prompts), dtype=torch.bool)
    for position in range(int(limits.max())):
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        seen = policy(
            input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        cache, logits = seen.past_key_values, seen.logits[:, -1]  # [rows, vocabulary]
        drawn = (logits / heat.clamp(min=1e-6)).softmax(-1).cumsum(-1)
        drawn = (drawn < luck[:, position, None] * drawn[:, -1:]).sum(-1)
        tokens = torch.where(heat[:, 0] > 0, drawn, logits.argmax(-1)).clamp(max=logits.shape[-1] - 1)[:, None]
        said.append(torch.where(over, PAD, tokens[:, 0]))
        over |= (tokens[:, 0] == END) | (limits == position + 1)
        if bool(over.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=-1)
    rows = torch.stack(said, dim=1).tolist()  # [rows][tokens]
    ends = [row.index(END) + 1 if END in row else limit for row, limit in zip(rows, limits.tolist(), strict=True)]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]
