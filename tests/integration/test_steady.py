"""Swaps leave nothing behind in an engine: the short form of `python -m tests.benchmarks steady`."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm.platforms import current_platform

from tests.benchmarks.steady import flat, swap


@pytest.mark.skipif(not current_platform.is_cpu(), reason="counts the memory of processes")
async def test_memory_files_slots_and_names_are_flat_over_many_swaps(tmp_path: Path) -> None:
    early, late = await swap(tmp_path, swaps=30)
    assert flat(early, late), (early, late)
    assert (late.slots, late.names) == (2, 2)
