"""Prompts of different lengths as one tensor that replies can be put behind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The ids, every row ending at the end, and where there is a token, 1 or 0: both (B, P) int64, P of the longest."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + [*row] for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
