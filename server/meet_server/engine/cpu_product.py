"""Products with a fixed matrix on CPUs, by the kernel that vLLM picks for a linear layer of that size.

A product of a LoRA is so small that starting it is most of its price: PyTorch's takes two to three times as long as
one whose matrix was packed beforehand. Knows nothing of LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TILE = 32


def tiled(num: int, dtype: torch.dtype) -> int:
    """How many rows or columns a narrow matrix had best have.

    Whole tiles where the processor multiplies by tiles (AMX), whose kernels take nothing else, and else what it needs.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return -(-num // TILE) * TILE
    return num


class Product:
    """x (T, in) -> x W^T (T, out), for one W (out, in) that is packed here and not kept."""

    __slots__ = ("_layer", "shape")

    def __init__(self, weight: Tensor) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        self.shape = tuple(weight.shape)
        self._layer: Any = nn.Module()
        self._layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        dispatch_cpu_unquantized_gemm(self._layer, remove_weight=True)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._layer.cpu_linear(x, self._layer.weight, None)
        return product
