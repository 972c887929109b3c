"""The matrices of one layer for the controls in use, and the products with them. Used by `resident_lora` alone.

T tokens, r rank, S slices of a fused layer (query, key, value), U controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Above this width the zeros of a block-diagonal B cost more than a product per slice.
MAX_FUSED_WIDTH = 128

Factors = tuple[Tensor, Tensor] | None
"""A (r, in) and B (out, r) of one slice; None where a control leaves it alone."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer's matrices for U controls.

    `a` is (r, in) where one A serves all, (U r, in) where the slices of a control have one, and else (S U r, in).
    `b` is one (columns of x A^T, out), or, in the last case and where that is wide, a (U r, out) for each slice.
    """

    a: Tensor
    b: tuple[Tensor, ...]
    rank: int
    shared: bool

    def add(self, y: Tensor, x: Tensor, weights: Tensor | None) -> None:
        """y (T, out) += ((x A^T) * W) B, in place. weights (T, U) float32; None stands for ones."""
        h = functional.linear(x, self.a)
        if weights is not None:
            h = self._weighted(h, weights)
        if len(self.b) == 1:
            y.addmm_(h, self.b[0])
            return
        column = 0
        for index, b in enumerate(self.b):
            rows, out = b.shape
            y[:, column : column + out].addmm_(h[:, index * rows : (index + 1) * rows], b)
            column += out

    def _weighted(self, h: Tensor, weights: Tensor) -> Tensor:
        num_tokens, num_controls = weights.shape
        if self.shared:
            left, right = h.unsqueeze(1), weights.unsqueeze(2)
            weighted = h.new_empty(num_tokens, num_controls, self.rank)
        else:
            left = h.view(num_tokens, -1, num_controls, self.rank)
            right = weights.view(num_tokens, 1, num_controls, 1)
            weighted = torch.empty_like(left)
        # Multiplied in float32 and rounded once: bfloat16 would not tell strengths of 2.01 and 2.00 apart.
        return torch.mul(left, right, out=weighted).view(num_tokens, -1)


def pack(layer: Any, controls: Sequence[Any]) -> Packed:
    """`layer` is vLLM's linear layer with LoRA; of each control the LoRALayerWeights for it, or None."""
    sizes = tuple(layer.output_slices)
    table = [slices_of(layer, weights) for weights in controls]
    all_a = [[each[0] for each in row if each is not None] for row in table]
    first = next(a for row in all_a for a in row)
    rank = max(a.shape[0] for row in all_a for a in row)
    one_each = all(_same(a, row[0]) for row in all_a for a in row)
    shared = one_each and all(_same(row[0], first) for row in all_a if row)
    if one_each:
        own = [_padded(row[0], rank) if row else first.new_zeros(rank, first.shape[1]) for row in all_a]
        a = first if shared else torch.cat(own)
        b = torch.cat([torch.cat([_b(each, size, rank, first) for each, size in zip(row, sizes, strict=True)], 1)
                       for row in table])  # fmt: skip
        return Packed(a.contiguous(), (b.contiguous(),), rank, shared)
    columns = list(zip(*table, strict=True))
    a = torch.cat([_a(each, rank, first) for column in columns for each in column])
    blocks = [torch.cat([_b(each, size, rank, first) for each in column])
              for column, size in zip(columns, sizes, strict=True)]  # fmt: skip
    if len(blocks) > 1 and a.shape[0] <= MAX_FUSED_WIDTH:
        blocks = [torch.block_diag(*blocks)]  # type: ignore[no-untyped-call]
    return Packed(a.contiguous(), tuple(block.contiguous() for block in blocks), rank, shared=False)


def slices_of(layer: Any, weights: Any) -> list[Factors]:
    """A control's factors for each slice of a layer, cut to this process's share of it, as vLLM's `set_lora` does."""
    num = len(layer.output_slices)
    if weights is None:
        return [None] * num
    a, b = weights.lora_a, weights.lora_b
    if isinstance(b, list) and len(b) != num:
        a, b = layer.expand_packed_lora(a, b)
    if layer.tp_size > 1:
        a, b = layer.slice_lora_a(a), layer.slice_lora_b(b)
    if not isinstance(b, list):
        a, b = [a], [b]
    return [None if each_a is None else (each_a, each_b) for each_a, each_b in zip(a, b, strict=True)]


def check_fits(layer: Any, name: str, weights: Any) -> None:
    """Raises ValueError, naming the layer, for factors of other shapes than it has."""
    for each, size in zip(slices_of(layer, weights), layer.output_slices, strict=True):
        if each is not None and (each[0].shape[1] != layer.input_size or each[1].shape != (size, each[0].shape[0])):
            raise ValueError(
                f"layer {name}: A is {tuple(each[0].shape)} and B {tuple(each[1].shape)}; "
                f"(r, {layer.input_size}) and ({size}, r) are needed"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def _a(factors: Factors, rank: int, like: Tensor) -> Tensor:
    return like.new_zeros(rank, like.shape[1]) if factors is None else _padded(factors[0], rank)


def _b(factors: Factors, size: int, rank: int, like: Tensor) -> Tensor:
    """(rank, size)"""
    return like.new_zeros(rank, size) if factors is None else _padded(factors[1].t(), rank)


def _padded(matrix: Tensor, rank: int) -> Tensor:
    """The matrix with rows of zeros up to that many."""
    missing = rank - matrix.shape[0]
    return functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix
