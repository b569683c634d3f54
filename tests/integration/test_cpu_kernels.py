"""The C++ kernels that take torch's place in an engine on a CPU, against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu
from vllm.platforms import current_platform

from serving import cpu_kernels

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the kernels of a CPU")

SHAPES = ((1, 16), (3, 64), (33, 688))  # [tokens, hidden]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    current_platform.import_kernels()


def drawn(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_is_torch_s(shape: tuple[int, int]) -> None:
    x, weight = drawn(shape, 1), drawn((1, shape[1]), 2)[0]
    torch.testing.assert_close(cpu_kernels.rms_norm(x, weight, 1e-6), rms_norm(x, (shape[1],), weight, 1e-6))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_of_a_sum_leaves_the_sum_behind(shape: tuple[int, int]) -> None:
    x, residual, weight = drawn(shape, 1), drawn(shape, 2), drawn((1, shape[1]), 3)[0]
    total = x + residual
    normed, left = cpu_kernels.fused_add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(left, total)
    torch.testing.assert_close(normed, rms_norm(total, (shape[1],), weight, 1e-6))


@pytest.mark.parametrize("shape", [(tokens, 2 * width) for tokens, width in SHAPES])
def test_a_gated_activation_is_torch_s(shape: tuple[int, int]) -> None:
    x = drawn(shape, 1)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(cpu_kernels.silu_and_mul(x), silu(gate) * up)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (drawn((2, 24), 1), torch.ones(24)),  # a width that leaves a rest
        (drawn((32, 2), 1).t(), torch.ones(32)),  # rows that do not lie behind one another
        (drawn((2, 32), 1), None),
        (drawn((2, 32), 1), torch.ones(32, dtype=torch.bfloat16)),
        (drawn((2, 32), 1)[None], torch.ones(32)),
    ],
)
def test_what_the_kernels_do_not_take_stays_with_torch(x: Tensor, weight: Tensor | None) -> None:
    assert not cpu_kernels.norm_fits(x, weight, 1e-6)
    assert cpu_kernels.norm_fits(drawn((2, 32), 1), torch.ones(32), 1e-6)
