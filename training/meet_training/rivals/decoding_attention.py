"""Attention for decoding: the one new token of every row looks at the keys as they lie in the cache's blocks.

Transformers repeats keys and values for the heads that share them before every step, and PyTorch's fused attention is
made for many queries: with many rows of a small model the two took longer than everything else.

B rows, H heads, G key-value heads, T tokens so far, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from meet_training.stages.packed_attention import is_plain

NAME = "meet_decoding"


def take(model: Any) -> bool:
    """Makes a model attend this way, where it can: from then on it wants blocks. Returns whether it does."""
    if model.device.type != "cpu" or not is_plain(model):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor | list[Tensor],
    value: Tensor | list[Tensor],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query (B, H, 1, D), blocks of keys and values (B, G, t, D), mask (B, 1, 1, T) true where it may look
    -> (B, 1, H, D). Prompts, whose keys are one tensor, go PyTorch's way.
    """
    if isinstance(key, Tensor) or isinstance(value, Tensor):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)[0]
        return attended, None
    num_rows, num_heads, _, size = query.shape
    rows = query.view(num_rows, key[0].shape[1], -1, size)  # (B, G, H / G, D)
    scores = torch.cat([rows @ block.transpose(2, 3) for block in key], dim=-1).float()  # (B, G, H / G, T)
    scores *= size**-0.5 if scaling is None else scaling
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, float("-inf"))
    weights = torch.softmax(scores, -1).to(query.dtype)
    parts = torch.split(weights, [block.shape[2] for block in value], dim=-1)
    attended = torch.stack([part @ block for part, block in zip(parts, value, strict=True)]).sum(0)
    return attended.reshape(num_rows, 1, num_heads, size), None
