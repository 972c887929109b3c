"""Keys and values of rows that are decoded together, in blocks: transformers' cache copies all of them at every step.

A block is full and stays where it is; behind the blocks is a tail that grows. One tensor with room to grow would not
do: PyTorch's batched products copy what is not packed. Read by `decoding_attention` alone.

B rows, G key-value heads, T tokens so far, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Tokens that a block has at least."""


class BlockLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values. What `update` returns goes to the attention as it is: blocks instead of a tensor."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """A tail that is empty."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = [key_states[:, :, :0]], [value_states[:, :, :0]]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Adds what is new, (B, G, n, D), and returns all blocks."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for blocks, new in ((self.keys, key_states), (self.values, value_states)):
            blocks[-1] = torch.cat([blocks[-1], new], dim=2)
        found = list(self.keys), list(self.values)
        if self.keys[-1].shape[2] >= BLOCK:
            self.keys.append(key_states[:, :, :0])
            self.values.append(value_states[:, :, :0])
        return found

    def get_seq_length(self) -> int:
        """T."""
        return sum(block.shape[2] for block in self.keys) if self.is_initialized else 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        self.keys, self.values = ([block[indices] for block in blocks] for blocks in (self.keys, self.values))


def joined(groups: Sequence[DynamicCache], *, in_blocks: bool) -> Cache:
    """The caches of groups of rows as one, each row with its last token last."""
    layers = []
    for parts in zip(*(group.layers for group in groups), strict=True):
        layers.append(BlockLayer() if in_blocks else DynamicLayer())
        layers[-1].update(_joined([part.keys for part in parts]), _joined([part.values for part in parts]))
    return Cache(layers=layers)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])
