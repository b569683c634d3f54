"""The process that trains: quiet, and the same every time. Loads torch only when it is asked to settle."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of large libraries: they make objects by the million and no garbage, and looking for it
    again and again is a fifth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it looked for later among what will never be garbage
        if was_on:
            gc.enable()


def settle(threads: int, *, on_gpu: bool) -> None:
    """Before the first tensor: so many threads, algorithms that repeat themselves, memory that stays."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose another algorithm

    import torch
    import transformers

    from training.memory import keep_heap

    keep_heap()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore  2 % of a step, to find bugs by
    transformers.utils.logging.disable_progress_bar()
