"""Greedy replies of a model with its controls attached, many prompts at once, under any mix of controls.

Rows that have ended leave the batch, so that a long reply holds nobody up. Served bundles are asked through the engine
(`meet eval`); here a model is asked for a minute and thrown away, which is less than an engine takes to start.

B rows that are still going, P tokens of the longest prompt, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meet_training.controls.control import ControlSet
from meet_training.data.render import Ids
from meet_training.rivals import decoding_attention

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A rendered prompt and the index of the control that it is under, -1 for none."""

    prompt_ids: Ids
    control: int


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """How every reply is decoded. A reply is cut after `max_tokens`."""

    eos_id: int
    pad_id: int
    max_tokens: int
    repetition_penalty: float


@torch.no_grad()
def greedy(
    model: Any,
    controls: ControlSet,
    asked: Sequence[Asked],
    config: DecodingConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Ids]:
    """The ids of each reply, with the end of turn at the end of those that ended."""
    decoding_attention.take(model)
    replies: list[Ids] = []
    for start in range(0, len(asked), BATCH_SIZE):
        replies += _Batch(model, controls, asked[start : start + BATCH_SIZE], config).replies()
        if on_progress:
            on_progress(len(replies), len(asked))
    return replies


class _Batch:
    """Prompts that are answered together."""

    def __init__(self, model: Any, controls: ControlSet, asked: Sequence[Asked], config: DecodingConfig) -> None:
        from transformers import DynamicCache

        self._model, self._controls, self._config = model, controls, config
        rows = [_with_virtual_ids(controls, each) for each in asked]
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        device = model.device
        padded = [[config.pad_id] * num + [*row] for num, row in zip(pads, rows, strict=True)]
        self._ids = torch.tensor(padded, device=device)  # (B, P), then (B, 1)
        self._mask = torch.tensor([[0] * num + [1] * len(row) for num, row in zip(pads, rows, strict=True)]).to(device)
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        self._token_controls = torch.tensor([[each.control] for each in asked], device=device)  # (B, 1)
        self._seen = self._ids_seen(rows).to(device)  # (B, V)
        self._cache = DynamicCache()
        self._going = list(range(len(rows)))

    def replies(self) -> list[Ids]:
        replies: list[list[int]] = [[] for _ in self._going]
        for _ in range(self._config.max_tokens):
            chosen = self._step()
            for row, token in zip(self._going, chosen.tolist(), strict=True):
                replies[row].append(token)
            self._go_on(chosen)
            if not self._going:
                break
        return [tuple(reply) for reply in replies]

    def _step(self) -> Tensor:
        """The next token of every row, (B,) int64."""
        with self._controls.applied(self._token_controls):
            logits = self._model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return penalised(logits.float(), self._seen, self._config.repetition_penalty).argmax(-1)

    def _go_on(self, chosen: Tensor) -> None:
        """Leaves out the rows that have ended, and makes the others' tokens the next input."""
        keep = (chosen != self._config.eos_id).nonzero()[:, 0]
        if len(keep) < len(chosen):
            self._cache.batch_select_indices(keep)
            self._mask, self._positions, self._seen = self._mask[keep], self._positions[keep], self._seen[keep]
            self._token_controls, chosen = self._token_controls[keep], chosen[keep]
            self._going = [self._going[i] for i in keep.tolist()]
        self._ids = chosen[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        self._seen.scatter_(1, self._ids, True)

    def _ids_seen(self, rows: Sequence[Ids]) -> Tensor:
        size = self._model.get_output_embeddings().weight.shape[0]
        seen = torch.zeros(len(rows), size, dtype=torch.bool)
        for i, row in enumerate(rows):
            seen[i, [token for token in row if token < size]] = True  # virtual tokens are none that can be repeated
        return seen


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Keskar et al. 2019 (arXiv 1909.05858, section 4.1), as vLLM and transformers have it. logits, seen (B, V)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _with_virtual_ids(controls: ControlSet, asked: Asked) -> Ids:
    before, after = controls.virtual_ids(asked.control)
    return before + asked.prompt_ids + after
