"""RMSNorm and SiLU on CPUs by the kernels that vLLM brings along, inside the engine's worker processes.

vLLM 0.32 has them in C for CPUs and, without compilation, computes both step by step in PyTorch: eight small operations
a norm, most of them in float32. Adapters turn compilation off, so controlled requests would pay for that. Knows nothing
of MEET; models are the same to rounding.

When it goes: once vLLM's layers do this themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The kernels take widths of whole vectors alone.
LANES = 8

Normed = Tensor | tuple[Tensor, Tensor]


def norm_by_kernel(plain: Callable[..., Normed]) -> Callable[..., Normed]:
    """`RMSNorm.forward_cpu`; what the kernel does not take goes the former way."""

    @functools.wraps(plain)
    def forward_cpu(layer: Any, x: Tensor, residual: Tensor | None = None) -> Normed:
        weight = layer.weight
        alike = layer.has_weight and layer.variance_size_override is None and weight.dtype == x.dtype
        if not alike or x.shape[-1] % LANES:
            return plain(layer, x, residual)
        if residual is None:
            x = x.contiguous()
            normed = torch.empty_like(x)
            torch.ops._C.rms_norm(normed, x, weight, layer.variance_epsilon)
            return normed
        if not (x.is_contiguous() and residual.is_contiguous()):
            return plain(layer, x, residual)
        torch.ops._C.fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)  # both in place
        return x, residual

    return forward_cpu


def silu_by_kernel(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`SiluAndMul.forward_cpu`: x (T, 2 d) -> silu(x[:, :d]) * x[:, d:]; what the kernel does not take as before."""

    @functools.wraps(plain)
    def forward_cpu(layer: Any, x: Tensor) -> Tensor:
        if x.shape[-1] % (2 * LANES):
            return plain(layer, x)
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        torch.ops._C.silu_and_mul(out, x.contiguous())
        return out

    return forward_cpu


def install() -> None:
    """Puts them into vLLM's layers, once."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    for layer, by_kernel in ((RMSNorm, norm_by_kernel), (SiluAndMul, silu_by_kernel)):
        if not hasattr(layer.forward_cpu, "__wrapped__"):
            layer.forward_cpu = by_kernel(layer.forward_cpu)
