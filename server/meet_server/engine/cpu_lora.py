"""LoRA on CPUs by dense products over slots, inside the engine's worker processes. Knows nothing of MEET.

Used where `resident_lora` cannot be: by models whose adapted layers are not all plain linear ones.

vLLM's own CPU kernels gather the adapter of every token: slow, and until 0.33 wrong, for they index with
-1 where a token has no adapter, and so give it the last slot's. Here the adapters in use in a batch are
one matrix:

    y += ((x @ A) * mask) @ B        A (in, U r), mask (T, U r), B (U r, out)

for U slots in use at rank r and T tokens; the mask keeps of each row what belongs to its token's slot.
With S slices in one fused layer (query, key and value) A is (in, S U r) and B block-diagonal, so that
they cost one product too. Nothing at all is done while no request in the batch has an adapter.

When it goes: once vLLM's CPU kernels are as fast, `plugin.register` and this file.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.lora.ops.torch_ops import bgmv_expand, bgmv_expand_slice, bgmv_shrink
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

# Per layer: how many combinations of slots have their matrices kept. Batches move between few.
MAX_COMBINATIONS = 4
# Above this width the zeros of a block-diagonal B cost more than a product per slice.
MAX_FUSED_WIDTH = 128


@dataclass(slots=True)
class Rows:
    """Which slot each row of the batch uses; -1 for none."""

    slots: torch.Tensor
    used: tuple[int, ...]
    uniform: bool  # every row has the one slot in use
    _masks: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, slots: torch.Tensor) -> Rows:
        """slots (T,) int64, a copy of which is kept."""
        distinct = set(slots.tolist())
        return cls(slots.clone(), tuple(sorted(distinct - {-1})), uniform=len(distinct) == 1)

    def mask(self, rank: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(T, 1, U r): 1 where a column belongs to its row's slot. None where that is everywhere."""
        if self.uniform:
            return None
        mask = self._masks.get((rank, dtype))
        if mask is None:
            same = self.slots.unsqueeze(1) == torch.tensor(self.used)
            mask = same.to(dtype).repeat_interleave(rank, dim=1).unsqueeze(1)
            self._masks[rank, dtype] = mask
        return mask


@dataclass(frozen=True, slots=True)
class Packed:
    """The adapters of one layer for one combination of slots, ready to multiply with."""

    a: torch.Tensor  # (in, S U r)
    b: tuple[torch.Tensor, ...]  # one (S U r, out), or per slice (U r, out of the slice)
    versions: tuple[int, ...]


class DenseLora(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's wrapper for LoRA on CPUs, with dense products in place of gathered ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nothing = torch.empty(0, dtype=torch.long)
        self._tokens = Rows.of(nothing)
        self._samples = Rows.of(nothing)
        self._packed: dict[int, OrderedDict[tuple[int, ...], Packed]] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called once per change of the batch, not per layer and not while the same requests decode on."""
        super().update_metadata(*args, **kwargs)
        self._tokens = Rows.of(self.token_lora_indices)
        self._samples = Rows.of(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """y (T, out) += LoRA of x (T, in), in place. Stacks: per slice (slots, 1, r, in) and (slots, 1, out, r)."""
        self._add(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, self._tokens)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """The same for the output layer, whose rows are the sampled positions."""
        out = min(y.shape[-1], lora_b_stacked.shape[-2])
        self._add(y, x, (lora_a_stacked,), (lora_b_stacked,), scale, (out,), self._samples)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """y (T, out) += x (T, r) @ B of each token's slot. Rows without a slot have slot 0's x: blanked."""
        slots = self._tokens.slots
        bgmv_expand(_blank(x, slots), lora_b_stacked, y, slots.clamp_min(0), add_inputs)

    # The two below serve fully sharded adapters (tensor parallel), where a gather over processes stands
    # between the products. The stock kernels, with rows without a slot blanked.

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        slots = self._tokens.slots
        bgmv_shrink(_blank(x, slots), w_t_all, y.view(-1, y.shape[-1]), slots.clamp_min(0), scale)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        slots = self._tokens.slots
        rows = y.view(-1, y.shape[-1])
        bgmv_expand_slice(_blank(x, slots), w_t_all, rows, slots.clamp_min(0), y_offset, y_slice_size, add_inputs)

    def _add(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        stacks_a: tuple[torch.Tensor, ...],
        stacks_b: tuple[torch.Tensor, ...],
        scale: float,
        slices: tuple[int, ...],
        rows: Rows,
    ) -> None:
        if not rows.used:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        packed = self._pack(stacks_a, stacks_b, slices, rows.used)
        rank = stacks_a[0].shape[-2]
        # In bfloat16 the product is summed in float32 and rounded once, as the stock kernels do before
        # their second product.
        h = torch.mm(x.to(packed.a.dtype), packed.a)
        mask = rows.mask(rank, h.dtype)
        if mask is not None:
            h.view(h.shape[0], len(stacks_a), -1).mul_(mask)
        h = h.to(y.dtype)  # logits may be float32 where the model is not
        if len(packed.b) == 1:
            y[:, : sum(slices)].addmm_(h, packed.b[0].to(y.dtype), alpha=scale)
            return
        width, offset = h.shape[1] // len(slices), 0
        for index, (b, size) in enumerate(zip(packed.b, slices, strict=True)):
            part = h[:, index * width : (index + 1) * width]
            y[:, offset : offset + size].addmm_(part, b.to(y.dtype), alpha=scale)
            offset += size

    def _pack(
        self,
        stacks_a: tuple[torch.Tensor, ...],
        stacks_b: tuple[torch.Tensor, ...],
        slices: tuple[int, ...],
        used: tuple[int, ...],
    ) -> Packed:
        """The layer's matrices for the slots in use, made anew when an adapter was set or reset in a slot.

        Setting writes into the stacks in place, which torch counts in `_version`: that sees every
        change, also one under the same slot and id.
        """
        versions = tuple(stack._version for stack in (*stacks_a, *stacks_b))
        combinations = self._packed.setdefault(stacks_a[0].data_ptr(), OrderedDict())
        packed = combinations.get(used)
        if packed is None or packed.versions != versions:
            packed = combinations[used] = Packed(*_matrices(stacks_a, stacks_b, slices, used), versions)
            if len(combinations) > MAX_COMBINATIONS:
                combinations.popitem(last=False)
        combinations.move_to_end(used)
        return packed


def _matrices(
    stacks_a: tuple[torch.Tensor, ...],
    stacks_b: tuple[torch.Tensor, ...],
    slices: tuple[int, ...],
    used: tuple[int, ...],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    slots = list(used)
    a = torch.cat([stack[slots, 0].flatten(0, 1) for stack in stacks_a]).t().contiguous()
    # (U, out, r) -> (U r, out)
    blocks = [
        stack[slots, 0, :size].transpose(1, 2).flatten(0, 1).contiguous()
        for stack, size in zip(stacks_b, slices, strict=True)
    ]
    if len(blocks) == 1 or a.shape[1] > MAX_FUSED_WIDTH:
        return a, tuple(blocks)
    fused: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return a, (fused,)


def _blank(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """x (T, n) with the rows that have no slot set to zero."""
    return x * (slots >= 0).unsqueeze(-1).to(x.dtype)
