"""200 swaps in one engine: its memory, its open files and what it holds of adapters stay as they are.

    python -m tests.benchmarks.steady [--swaps 200]

Each swap is to an adapter the engine has never seen, under requests on the one before; then that one is unloaded. What is
held after a tenth of the swaps, when caches are full, is held against what is held at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from serving.contracts import Answer
from serving.settings import ServingSettings

if TYPE_CHECKING:
    from serving.engine import VllmEngine

SWAPS, DRAWN = 200, 5  # adapters drawn; each is loaded under a new name again and again
MOST_GROWTH_BYTES = 16 << 20  # what an allocator keeps; one adapter of this model is less than a megabyte
ASKED = Answer(prompt_token_ids=tuple(range(10, 74)), token_ids=tuple(range(60, 76)))


@dataclass(frozen=True)
class Held:
    bytes: int  # of memory that no other process shares, of all processes of the engine
    files: int
    slots: int  # adapters in the engine
    names: int  # adapters that vLLM's registry knows


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.steady")
    parser.add_argument("--swaps", type=int, default=SWAPS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        early, late = asyncio.run(swap(Path(folder), options.swaps))
    print(f"{options.swaps} swaps of one engine in {time.perf_counter() - began:.0f} s")
    for name, value in (("early", early), ("at the end", late)):
        print(
            f"  {name:10}  {value.bytes / 2**20:7.1f} MiB  {value.files} open files  {value.slots} slots  {value.names} names"
        )
    print("  PASS" if flat(early, late) else "  short of flat")


def flat(early: Held, late: Held) -> bool:
    same = (early.files, early.slots, early.names) == (late.files, late.slots, late.names)
    return same and late.bytes - early.bytes <= MOST_GROWTH_BYTES


async def swap(folder: Path, swaps: int) -> tuple[Held, Held]:
    """What the engine held after a tenth of the swaps, and after all."""
    from serving.engine import VllmEngine
    from tests.adapters import random_adapter
    from tests.tiny_models import build

    model = build("llama", folder / "model")
    drawn = [str(random_adapter(model, folder / f"adapter{seed}", seed)) for seed in range(DRAWN)]
    others = frozenset(psutil.Process().children(recursive=True))  # such as a cluster that other tests use
    engine = VllmEngine(model, ServingSettings(kv_cache_gib=1))
    try:
        loaded = deque[str]()
        early: Held | None = None
        for number in range(swaps):
            under_way = [asyncio.create_task(engine.score(name, ASKED)) for name in loaded for _ in range(4)]
            loaded.append(f"policy-{number:04d}-{number:08x}")
            await engine.load(loaded[-1], drawn[number % DRAWN])
            await engine.score(loaded[-1], ASKED)
            await asyncio.gather(*under_way)
            if len(loaded) > 2:  # stable and previous stay
                await engine.unload(loaded.popleft())
            if number == max(DRAWN, swaps // 10):
                early = await _held(engine, others)
        assert early is not None, "more swaps than adapters are drawn"
        return early, await _held(engine, others)
    finally:
        engine.shutdown()


async def _held(engine: VllmEngine, others: AbstractSet[psutil.Process]) -> Held:
    this = psutil.Process()
    processes = [this, *(child for child in this.children(recursive=True) if child not in others)]
    return Held(
        sum(process.memory_full_info().uss for process in processes),
        sum(process.num_fds() for process in processes),
        len(await engine._llm.list_loras()),
        len(engine._models.lora_requests),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
