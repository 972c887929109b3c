"""The training objective: log p(reply | prompt) of each example, on supervised tokens alone.

B batch rows, T tokens (padded), V vocabulary, M supervised tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meet_training.data.batches import Item


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right, and where in them a next token is supervised.

    ids (B, T) int64; predicts (B, T) bool, true where the *next* token is a reply token; targets (M,) int64,
    those next tokens in row order; controls (M,) int64, the control of each; rows, the control of each row.
    """

    ids: Tensor
    predicts: Tensor
    targets: Tensor
    controls: Tensor
    rows: tuple[int, ...]


def collate(items: Sequence[Item], pad_id: int, device: torch.device) -> Batch:
    """One batch of a pass. No attention mask is needed: attention is causal, so a token never sees the padding
    on its right, and nothing is supervised there."""
    length = max(len(item.rendered) for item in items)
    ids = torch.full((len(items), length), pad_id)
    predicts = torch.zeros((len(items), length), dtype=torch.bool)
    targets: list[int] = []
    controls: list[int] = []
    for i, item in enumerate(items):
        rendered = item.rendered
        ids[i, : len(rendered)] = torch.tensor(rendered.ids)
        predicts[i, len(rendered.prompt_ids) - 1 : len(rendered) - 1] = True
        targets.extend(rendered.reply_ids)
        controls.extend([item.control] * len(rendered.reply_ids))
    return Batch(
        ids=ids.to(device),
        predicts=predicts.to(device),
        targets=torch.tensor(targets, device=device),
        controls=torch.tensor(controls, device=device),
        rows=tuple(item.control for item in items),
    )


def reply_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood of every supervised token, (M,) float32, in nats, in row order."""
    with _only_at(model, batch.predicts):
        logits: Tensor = model(input_ids=batch.ids, use_cache=False).logits  # (1, M, V)
    return nn.functional.cross_entropy(logits[0].float(), batch.targets, reduction="none")


@contextmanager
def _only_at(model: nn.Module, predicts: Tensor) -> Iterator[None]:
    """Within the block the output layer sees the chosen positions alone: most of a batch is not supervised, and
    the output layer is a fifth of a small model. Whatever the model does to logits afterwards stays in force."""

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # (B, T, H)
        return (hidden[predicts].unsqueeze(0), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()
