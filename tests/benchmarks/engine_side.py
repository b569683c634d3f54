"""One engine in a process of its own, asked over its standard input for one measurement at a time.

    python -m tests.benchmarks.engine_side SIDE FOLDER

So two engines stand side by side in one run, and what slows the machine down for a minute slows both. `FOLDER` holds
`model`, `adapter0` and `adapter1`; `prepare` makes them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.lora.request import LoRARequest

VOCABULARY, CONTEXT_TOKENS = 2048, 1024
SIDES = ("ours", "compiled", "vllm", "bare")
NO_PLUGIN = {"VLLM_PLUGINS": ""}  # vLLM as it comes: on its sides, and where there is no adapter


@dataclass(frozen=True)
class Work:
    """`requests` at once, each with the adapter that its place in `adapters` says; -1: none."""

    adapters: tuple[int, ...]
    requests: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """That are counted: the sampled ones, or where one is sampled those of the prompts."""
        return self.requests * (self.prompt_tokens if self.answer_tokens == 1 else self.answer_tokens)


def prepare(folder: Path) -> None:
    """A model without a tokenizer, and two adapters of rank 8."""
    from tests.adapters import random_adapter

    llama(folder / "model", VOCABULARY)
    for seed in range(2):
        random_adapter(folder / "model", folder / f"adapter{seed}", seed)


def llama(directory: Path, vocabulary: int) -> Path:
    """Of 4 layers and hidden size 256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=CONTEXT_TOKENS, tie_word_embeddings=True, **shape, **heads
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def arguments(side: str, folder: Path) -> AsyncEngineArgs:
    """Ours are those of a replica. vLLM's own: what it takes for the same model, slots, rank and memory."""
    from vllm import AsyncEngineArgs

    from serving.engine import engine_args
    from serving.settings import ServingSettings

    ours = engine_args(folder / "model", ServingSettings(compiled=side == "compiled", prefix_caching=False))
    if side in ("ours", "compiled"):
        return dataclasses.replace(ours, skip_tokenizer_init=True)
    lora = ("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank", "lora_target_modules")
    same = ("model", "dtype", "max_num_seqs", "kv_cache_memory_bytes", "enable_prefix_caching", "disable_log_stats")
    taken = {name: getattr(ours, name) for name in (*same, *(lora if side == "vllm" else ()))}
    return AsyncEngineArgs(skip_tokenizer_init=True, **taken)


async def serve(side: str, folder: Path) -> None:
    """Answers each line of standard input, a `Work`, with the seconds it took."""
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(arguments(side, folder))
    adapters = {k: LoRARequest(f"adapter{k}", k + 1, str(folder / f"adapter{k}")) for k in range(2)}
    if side != "bare":
        for adapter in adapters.values():
            await llm.add_lora(adapter)
    try:
        _say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            work = Work(**json.loads(line))
            began = time.perf_counter()
            await asyncio.gather(*(_answer(llm, work, n, adapters) for n in range(work.requests)))
            _say(time.perf_counter() - began)
    finally:
        llm.shutdown()


async def _answer(llm: Any, work: Work, number: int, adapters: dict[int, LoRARequest]) -> None:
    from vllm import SamplingParams

    ids: Any = {"prompt_token_ids": [(7 * number + place) % VOCABULARY for place in range(work.prompt_tokens)]}
    tokens = work.answer_tokens
    params = SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    lora = adapters.get(work.adapters[number % len(work.adapters)])
    async for _ in llm.generate(ids, params, f"{number}-{time.monotonic_ns()}", lora_request=lora):
        pass


def _say(what: object) -> None:
    """On the first standard output, which the engine's own processes do not have."""
    os.write(_ANSWERS, (json.dumps(what) + "\n").encode())


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    else:
        _ANSWERS = os.dup(1)
        os.dup2(2, 1)
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
