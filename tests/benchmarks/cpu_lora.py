"""LoRA on a CPU: tokens a second with our plugin, with vLLM's own LoRA, and of the same engine without an adapter.

Each side is an engine in a process of its own; vLLM's own is got by `VLLM_PLUGINS`. Requests without an adapter on the
same engine are the limit: what a LoRA that costs nothing would reach.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONCURRENCY = (1, 8, 32)
PROMPT_TOKENS, ANSWER_TOKENS = 32, 64
LONG_PROMPTS, LONG_PROMPT_TOKENS = 8, 512  # for prefill
VOCABULARY = 2048
CASES = {"base": (None,), "one adapter": (0,), "base and two adapters": (None, 0, 1)}
SIDES = {"ours": None, "vLLM's own": ""}  # VLLM_PLUGINS; None: as it comes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        measured = {side: _measured(Path(folder), plugins) for side, plugins in SIDES.items()}
    ours, peer = measured["ours"], measured["vLLM's own"]
    print("LoRA on a CPU, Llama of 4 layers and hidden size 256, float32, rank 8, tokens a second:")
    for case, figures in ours.items():
        for what, tokens in figures.items():
            limit = ours["base"][what]
            print(
                f"  {case:<22} {what:<12} ours {tokens:7.0f}   vLLM's own {peer[case][what]:7.0f}   "
                f"{tokens / peer[case][what]:4.2f} x   {tokens / limit:4.0%} of without an adapter"
            )


def _prepare(folder: Path) -> None:
    """A model and two adapters, in a process that vLLM does not share."""
    subprocess.run([sys.executable, "-m", "tests.benchmarks.cpu_lora", "prepare", str(folder)], check=True)


def _measured(folder: Path, plugins: str | None) -> dict[str, dict[str, float]]:
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    command = [sys.executable, "-m", "tests.benchmarks.cpu_lora", "measure", str(folder)]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return json.loads((folder / "measured.json").read_text())


def _make(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.adapters import random_adapter

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    heads: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=True, **shape, **heads
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for seed in range(2):
        random_adapter(folder / "model", folder / f"adapter{seed}", seed)


async def _measure(folder: Path) -> dict[str, dict[str, float]]:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from serving.base_model import linear_layers

    model = folder / "model"
    arguments = AsyncEngineArgs(
        model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=1024, enforce_eager=True,
        enable_lora=True, max_loras=3, max_cpu_loras=3, max_lora_rank=8, lora_target_modules=linear_layers(model),
        enable_prefix_caching=False, max_num_seqs=64, kv_cache_memory_bytes=1 << 30, disable_log_stats=True,
    )  # fmt: skip
    llm = AsyncLLM.from_engine_args(arguments)
    adapters = [LoRARequest(f"adapter{k}", k + 1, str(folder / f"adapter{k}")) for k in range(2)]
    for adapter in adapters:
        await llm.add_lora(adapter)

    async def answer(number: int, lora: LoRARequest | None, prompt: int, tokens: int) -> None:
        ids: Any = {"prompt_token_ids": [(7 * number + place) % VOCABULARY for place in range(prompt)]}
        params = SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        async for _ in llm.generate(ids, params, f"{number}-{time.monotonic_ns()}", lora_request=lora):
            pass

    async def tokens_a_second(case: tuple[int | None, ...], requests: int, prompt: int, tokens: int) -> float:
        loras = [None if k is None else adapters[k] for k in case]
        seconds = []
        for _ in range(3):  # the first warms up
            began = time.perf_counter()
            await asyncio.gather(*(answer(n, loras[n % len(loras)], prompt, tokens) for n in range(requests)))
            seconds.append(time.perf_counter() - began)
        return requests * (prompt if tokens == 1 else tokens) / min(seconds[1:])

    try:
        return {
            name: {
                **{
                    f"decode {n}": await tokens_a_second(case, n, PROMPT_TOKENS, ANSWER_TOKENS)
                    for n in CONCURRENCY
                    if n >= len(case)
                },
                "prefill": await tokens_a_second(case, LONG_PROMPTS, LONG_PROMPT_TOKENS, 1),
            }
            for name, case in CASES.items()
        }
    finally:
        llm.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        _make(Path(sys.argv[2]))
    else:
        (Path(sys.argv[2]) / "measured.json").write_text(json.dumps(asyncio.run(_measure(Path(sys.argv[2])))))
