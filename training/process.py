"""The process that trains: quiet, and the same every time. Loads torch only when it is asked to settle."""

from __future__ import annotations

import os


def settle(threads: int, *, on_gpu: bool) -> None:
    """Before the first tensor: so many threads, algorithms that repeat themselves, memory that stays."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose another algorithm

    import torch
    import transformers

    from training.memory import keep_heap

    keep_heap()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    transformers.utils.logging.disable_progress_bar()
