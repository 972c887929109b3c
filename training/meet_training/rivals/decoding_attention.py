"""Attention for decoding on CPUs: the one new token of every row looks at the keys as they lie in the cache.

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


def take(model: Any) -> None:
    """Makes a model attend this way, where it can."""
    if model.device.type != "cpu" or not is_plain(model):
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query (B, H, 1, D), key and value (B, G, T, D), mask (B, 1, 1, T) true where it may look -> (B, 1, H, D).

    Prompts, which have more than one token, go PyTorch's way.
    """
    if query.shape[2] > 1:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)[0]
        return attended, None
    num_rows, num_heads, _, size = query.shape
    rows = query.view(num_rows, key.shape[1], -1, size)  # (B, G, H / G, D)
    scores = (rows @ key.transpose(2, 3)).float() * (size**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = torch.softmax(scores, -1).to(value.dtype)  # (B, G, H / G, T)
    return (weights @ value).reshape(num_rows, 1, num_heads, size), None
