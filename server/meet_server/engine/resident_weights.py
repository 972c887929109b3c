"""The matrices of one layer for the controls in use, for a kernel or for products. Used by `resident_lora` alone.

T tokens, r rank, S slices of a fused layer (query, key, value), U controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from meet_server.engine.cpu_product import Product, tiled
from meet_server.engine.lora_kernel import KernelBatch, KernelLayer, takes

# Above this width the zeros of a block-diagonal B cost more than a product per slice, and columns of A that are alike
# more than copying what one of them gives.
MAX_FUSED_WIDTH = 128

Factors = tuple[Tensor, Tensor] | None
"""A (r, in) and B (out, r) of one slice; None where a control leaves it alone."""


class Strengths:
    """How much of each control every token of a batch has: (T, U) float32, made once a step and read by all layers.

    What only the kernel or only products ask for is made when it is asked for.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table.contiguous()
        self._wide: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    @cached_property
    def batch(self) -> KernelBatch:
        """For the kernel, the tokens that have the same controls side by side."""
        num_controls = self.table.shape[1]
        marks = (self.table != 0).double() @ 2.0 ** torch.arange(num_controls, dtype=torch.double)  # a bit a control
        return KernelBatch(self.table, torch.argsort(marks, stable=True)[int((marks == 0).sum()) :])

    @cached_property
    def all_ones(self) -> bool:
        """Whether nothing needs to be multiplied by them."""
        return bool((self.table == 1).all())

    def wide(self, rank: int, times: int, num_columns: int, dtype: torch.dtype) -> Tensor:
        """(T, num_columns): each strength as often as its control has columns, which makes times U rank; then zeros.

        In that dtype where it holds every strength, as it does 0 and 1; else in float32, so that a product in place
        is rounded once: bfloat16 does not tell 2.01 and 2.00 apart.
        """
        key = (rank, times, num_columns, dtype)
        if key not in self._wide:
            low = self.table.to(dtype)
            exact = low if torch.equal(low.float(), self.table) else self.table
            self._wide[key] = _with_columns(exact.repeat_interleave(rank, 1).repeat(1, times), num_columns)
        return self._wide[key]


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer's matrices for U controls.

    `a` gives r columns, or U r, where one A serves all, U r where the slices of a control have one, and else S U r.
    `b` is one product with all of these, or, in the last case and where that is wide, one for each slice. Where there
    are U r columns or S U r, columns of zeros may follow (`tiled`).
    """

    a: Product
    b: tuple[Product, ...]
    rank: int
    num_controls: int
    times: int = 1  # S in the last case

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> None:
        """y (T, out) += ((x A^T) * W) B, in place."""
        h = self.a(x)
        if h.shape[1] < self.rank * self.num_controls:
            h = h.repeat(1, self.num_controls)
        if not strengths.all_ones:
            h.mul_(strengths.wide(self.rank, self.times, h.shape[1], h.dtype))
        if len(self.b) == 1:
            y.add_(self.b[0](h))
            return
        column = 0
        for index, b in enumerate(self.b):
            out, rows = b.shape
            y[:, column : column + out].add_(b(h[:, index * rows : (index + 1) * rows].contiguous()))
            column += out


@dataclass(frozen=True, slots=True)
class Fused:
    """The same by one call of a kernel of our own."""

    layer: KernelLayer

    def add(self, y: Tensor, x: Tensor, strengths: Strengths) -> None:
        """y (T, out) += ((x A^T) * W) B, in place."""
        self.layer.add(y, x, strengths.batch)


def pack(layer: Any, controls: Sequence[Any]) -> Fused | Packed | None:
    """`layer` is vLLM's linear layer with LoRA; of each control the LoRALayerWeights for it, or None.

    None where all controls leave it alone, as adapters that a user brings along may.
    """
    sizes = tuple(layer.output_slices)
    table = [slices_of(layer, weights) for weights in controls]
    all_a = [[each[0] for each in row if each is not None] for row in table]
    if not any(all_a):
        return None
    rank = max(a.shape[0] for row in all_a for a in row)
    return _fused(sizes, table, rank) or _packed(sizes, table, all_a, rank)


def _fused(sizes: Sequence[int], table: Sequence[Sequence[Factors]], rank: int) -> Fused | None:
    """None where the kernel does not take them."""
    distinct: list[Tensor] = []
    which = [[_index(each, distinct) for each in column] for column in zip(*table, strict=True)]
    like = distinct[0]
    if not takes(like.dtype, len(distinct), len(table), rank):
        return None
    a = torch.stack([_padded(each, rank) for each in distinct])
    b = torch.stack([
        torch.cat([_b(each, size, rank, like) for each, size in zip(row, sizes, strict=True)]).t() for row in table
    ])  # fmt: skip
    if all(row == which[0] for row in which):
        which, sizes = which[:1], (sum(sizes),)
    return Fused(KernelLayer(a, b, which, sizes))


def _index(factors: Factors, distinct: list[Tensor]) -> int:
    """Where a control's A stands among the distinct ones, to which it is added if it is new; any place without one."""
    if factors is None:
        return 0
    for index, each in enumerate(distinct):
        if _same(factors[0], each):
            return index
    distinct.append(factors[0])
    return len(distinct) - 1


def _packed(
    sizes: Sequence[int], table: Sequence[Sequence[Factors]], all_a: Sequence[Sequence[Tensor]], rank: int
) -> Packed:
    """By products."""
    first = next(a for row in all_a for a in row)
    width = rank * len(table)
    one_each = all(_same(a, row[0]) for row in all_a for a in row)
    if one_each:
        own = [_padded(row[0], rank) if row else first.new_zeros(rank, first.shape[1]) for row in all_a]
        shared = all(_same(row[0], first) for row in all_a if row)
        copied = shared and width > MAX_FUSED_WIDTH
        if shared:
            own = [first] * (1 if copied else len(table))
        num = width if copied else tiled(width, first.dtype)
        a = _padded(torch.cat(own), rank if copied else num)
        b = [torch.cat([_b(each, size, rank, first) for each, size in zip(row, sizes, strict=True)]) for row in table]
        return Packed(Product(a), (Product(_with_columns(torch.cat(b, 1), num)),), rank, len(table))
    columns = list(zip(*table, strict=True))
    a = torch.cat([_a(each, rank, first) for column in columns for each in column])
    blocks = [torch.cat([_b(each, size, rank, first) for each in column], 1)
              for column, size in zip(columns, sizes, strict=True)]  # fmt: skip
    if len(blocks) > 1 and a.shape[0] <= MAX_FUSED_WIDTH:
        blocks = [torch.block_diag(*blocks)]  # type: ignore[no-untyped-call]
    if len(blocks) == 1:
        num = tiled(a.shape[0], first.dtype)
        a, blocks = _padded(a, num), [_with_columns(blocks[0], num)]
    return Packed(Product(a), tuple(Product(block) for block in blocks), rank, len(table), len(sizes))


def slices_of(layer: Any, weights: Any) -> list[Factors]:
    """A control's factors for each slice of a layer, cut to this process's share of it, as vLLM's `set_lora` does."""
    num = len(layer.output_slices)
    if weights is None:
        return [None] * num
    a, b = weights.lora_a, weights.lora_b
    if isinstance(b, list) and len(b) != num:
        a, b = layer.expand_packed_lora(a, b)
    elif num > 1 and not isinstance(b, list):  # one matrix for all of them, as LFM2's convolutions have it
        ends = list(accumulate(layer.base_layer.output_sizes))
        a, b = [a] * num, list(b.tensor_split(ends[:-1]))
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
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def _a(factors: Factors, rank: int, like: Tensor) -> Tensor:
    return like.new_zeros(rank, like.shape[1]) if factors is None else _padded(factors[0], rank)


def _b(factors: Factors, size: int, rank: int, like: Tensor) -> Tensor:
    """(size, rank)"""
    if factors is None:
        return like.new_zeros(size, rank)
    missing = rank - factors[1].shape[1]
    return functional.pad(factors[1], (0, missing)) if missing else factors[1]


def _with_columns(matrix: Tensor, num: int) -> Tensor:
    """The matrix with columns of zeros up to that many."""
    missing = num - matrix.shape[1]
    return functional.pad(matrix, (0, missing)) if missing else matrix


def _padded(matrix: Tensor, rank: int) -> Tensor:
    """The matrix with rows of zeros up to that many."""
    missing = rank - matrix.shape[0]
    return functional.pad(matrix, (0, 0, 0, missing)) if missing else matrix
