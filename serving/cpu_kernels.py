"""The C++ kernels for norms and gated activations that vLLM builds for CPUs and then gives to GPUs alone.

Without compilation its CPU engine puts an RMSNorm together from seven torch operations and a SwiGLU from two, each with
a pass over the activations and a call from Python. A compiled engine fuses them itself, so that it is left as it is.
Called by `cpu_lora.py` for the versions whose insides are known; knows no adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROVIDER = "heliotrope_cpu"
WIDTH = 16  # the kernels go over a row in steps of at most so many elements, and have none for a rest


def use(platform: Any) -> None:
    """Make them the first choice of the CPU `platform` where a model is not compiled."""
    from vllm import ir
    from vllm.config.compilation import CompilationMode
    from vllm.config.kernel import IrOpPriorityConfig
    from vllm.model_executor.layers.activation import SiluAndMul

    platform.import_kernels()
    if PROVIDER in ir.ops.rms_norm.impls:
        return
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=norm_fits)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=sum_fits, inplace=True)(fused_add_rms_norm)

    def priority(cls: Any, config: Any) -> IrOpPriorityConfig:
        eager = config.compilation_config.mode == CompilationMode.NONE
        ours = {"rms_norm": [PROVIDER, "native"], "fused_add_rms_norm": [PROVIDER, "native"]} if eager else {}
        return IrOpPriorityConfig.with_default(["native"], **ours)

    platform.get_default_ir_op_priority = classmethod(priority)
    native = SiluAndMul.forward_cpu
    SiluAndMul.forward_cpu = lambda self, x: silu_and_mul(x) if gate_fits(x) else native(self, x)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """`x` [..., hidden] over its root mean square, times `weight` [hidden]."""
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Both [..., hidden] are written: their normed sum, and their sum."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def silu_and_mul(x: Tensor) -> Tensor:
    """`x` [..., 2 * width]: silu of its first half times its second, [..., width]."""
    gated = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype)
    torch.ops._C.silu_and_mul(gated, x)
    return gated


def norm_fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    plain = weight is not None and weight.dtype == x.dtype and variance_size is None
    return plain and x.dim() == 2 and x.is_contiguous() and x.shape[-1] % WIDTH == 0


def sum_fits(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return x_residual.is_contiguous() and norm_fits(x, weight, epsilon, variance_size)


def gate_fits(x: Tensor) -> bool:
    return x.dim() == 2 and x.is_contiguous() and x.shape[-1] % (2 * WIDTH) == 0
