"""vLLM's kernels for RMSNorm and SiLU beside what its layers compute step by step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("kernels for CPUs", allow_module_level=True)

from meet_server.engine.cpu_kernels import norm_by_kernel, silu_by_kernel

EPSILON = 1e-5
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def kernels() -> None:
    current_platform.import_kernels()


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(dtype: torch.dtype, override: int | None = None, width: int = 64) -> SimpleNamespace:
    weight = draw(width, seed=1, dtype=dtype)
    return SimpleNamespace(weight=weight, has_weight=True, variance_size_override=override, variance_epsilon=EPSILON)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON) * weight.float()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norm(dtype: torch.dtype) -> None:
    forward, own = norm_by_kernel(lambda *_: pytest.fail("the kernel takes this")), layer(dtype)
    for x in (draw(3, 64, seed=2, dtype=dtype), draw(3, 2, 64, seed=2, dtype=dtype)):
        torch.testing.assert_close(
            forward(own, x).float(), normed(x, own.weight), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norm_of_a_sum(dtype: torch.dtype) -> None:
    own, x, residual = layer(dtype), draw(3, 64, seed=2, dtype=dtype), draw(3, 64, seed=3, dtype=dtype)
    total = x.float() + residual.float()
    y, kept = norm_by_kernel(lambda *_: pytest.fail("the kernel takes this"))(own, x, residual)
    for found, expected in ((y, normed(total, own.weight)), (kept, total)):
        torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_what_the_kernel_does_not_take_goes_the_former_way() -> None:
    forward, x = norm_by_kernel(lambda _layer, x, _residual: x), draw(3, 64, seed=2)
    assert forward(layer(torch.float32, override=32), x) is x
    assert forward(layer(torch.bfloat16), x) is x
    apart = draw(3, 128, seed=2)[:, ::2]
    assert forward(layer(torch.float32), apart, x) is apart


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_silu(dtype: torch.dtype) -> None:
    x = draw(3, 96, seed=2, dtype=dtype)
    expected = torch.nn.functional.silu(x[:, :48].float()) * x[:, 48:].float()
    for each in (x, torch.stack([x, x], -1)[..., 0]):
        found = silu_by_kernel(lambda *_: pytest.fail("the kernel takes this"))(None, each)
        torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("width", [4, 20, 100])
def test_widths_that_the_kernels_do_not_take_go_the_former_way(width: int) -> None:
    own, x = layer(torch.float32, width=width), draw(3, width, seed=2)
    forward = norm_by_kernel(lambda _layer, x, _residual: x)
    assert forward(own, x) is x
    assert forward(own, x, x.clone()) is x
    wide = draw(3, 2 * width, seed=2)
    assert silu_by_kernel(lambda _layer, x: x)(None, wide) is wide
