"""Greedy replies of a model with its controls attached, many prompts at once, under any mix of controls.

Prompts of like length are answered together, and rows that have ended leave the batch, so that neither a long prompt
nor a long reply holds others up. Served bundles are asked through the engine (`meet eval`); here a model is asked for
a minute or two and thrown away.

B rows of a batch, P tokens of the longest prompt, T tokens so far, S ids seen, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meet_training.controls.control import ControlSet
from meet_training.data.render import Ids
from meet_training.rivals import decoding_attention
from meet_training.stages.left_padding import left_padded

if TYPE_CHECKING:
    from transformers import Cache, DynamicCache

BATCH_SIZE = 64

TOKENS_PER_PASS = 2048
"""Tokens of prompts, padding among them, that are read at a time."""

ENDED = 0.125
"""Share of a batch's rows that may have ended before they leave it: what stays is copied then."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A rendered prompt and the index of the control that it is under, -1 for none."""

    prompt_ids: Ids
    control: int


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """How every reply is decoded. A reply ends with one of `end_ids`, or is cut after `max_tokens`."""

    end_ids: Ids
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
    in_blocks = decoding_attention.take(model)
    rows = [_with_virtual_ids(controls, each) for each in asked]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    replies: dict[int, Ids] = {}
    for start in range(0, len(order), BATCH_SIZE):
        own = order[start : start + BATCH_SIZE]
        batch = _Batch(
            model, controls, [rows[i] for i in own], [asked[i].control for i in own], config, in_blocks=in_blocks
        )
        replies |= zip(own, batch.replies(), strict=True)
        if on_progress:
            on_progress(len(replies), len(asked))
    return [replies[i] for i in range(len(asked))]


class _Batch:
    """Prompts that are answered together, in ascending order of length."""

    def __init__(
        self,
        model: Any,
        controls: ControlSet,
        rows: Sequence[Ids],
        row_controls: Sequence[int],
        config: DecodingConfig,
        *,
        in_blocks: bool,
    ) -> None:
        from meet_training.rivals.decoding_cache import joined

        self._model, self._controls, self._config = model, controls, config
        self._token_controls = torch.tensor([[control] for control in row_controls], device=model.device)  # (B, 1)
        self._seen = self._ids_seen(rows)  # (B, S)
        self._numbers = list(range(len(rows)))
        self._end_ids = torch.tensor(config.end_ids, device=model.device)
        self._going = torch.ones(len(rows), dtype=torch.bool, device=model.device)  # (B,)
        parts = [self._read(rows[some], self._token_controls[some]) for some in groups_of(list(map(len, rows)))]
        self._cache = joined([cache for _, cache in parts], in_blocks=in_blocks)
        self._logits = torch.cat([logits for logits, _ in parts])  # (B, V)
        _, self._mask = left_padded(rows, config.pad_id, model.device)  # (B, T)
        self._positions = self._mask.sum(1, keepdim=True) - 1  # (B, 1)

    def replies(self) -> list[Ids]:
        replies: list[list[int]] = [[] for _ in self._numbers]
        for left in reversed(range(self._config.max_tokens)):
            chosen = penalised(self._logits.float(), self._seen, self._config.repetition_penalty).argmax(-1)
            for number, token, going in zip(self._numbers, chosen.tolist(), self._going.tolist(), strict=True):
                if going:
                    replies[number].append(token)
            self._going &= ~torch.isin(chosen, self._end_ids)
            if not left or not self._going.any():
                break
            self._say(self._without_ended(chosen[:, None]))
        return [tuple(reply) for reply in replies]

    def _read(self, rows: Sequence[Ids], token_controls: Tensor) -> tuple[Tensor, DynamicCache]:
        """The logits behind each of these prompts, (b, V), and their keys and values."""
        from transformers import DynamicCache

        cache = DynamicCache()
        ids, mask = left_padded(rows, self._config.pad_id, self._model.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        return self._forward(ids, mask, positions, token_controls, cache), cache

    def _say(self, ids: Tensor) -> None:
        """Puts (B, 1) tokens behind the rows and looks at what comes next."""
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        self._positions += 1
        self._seen = torch.cat([self._seen, ids], dim=1)
        self._logits = self._forward(ids, self._mask, self._positions, self._token_controls, self._cache)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, token_controls: Tensor, cache: Cache) -> Tensor:
        with self._controls.applied(token_controls):
            logits: Tensor = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return logits[:, -1]

    def _without_ended(self, chosen: Tensor) -> Tensor:
        """`chosen`, and everything else, of the rows that go on, once enough have ended."""
        keep = self._going.nonzero()[:, 0]
        if len(self._going) - len(keep) < ENDED * len(self._going):
            return chosen
        self._cache.batch_select_indices(keep)
        self._mask, self._positions, self._seen = self._mask[keep], self._positions[keep], self._seen[keep]
        self._token_controls, self._going = self._token_controls[keep], self._going[keep]
        self._numbers = [self._numbers[i] for i in keep.tolist()]
        return chosen[keep]

    def _ids_seen(self, rows: Sequence[Ids]) -> Tensor:
        """The ids of each row, the first again where a row is shorter; virtual tokens are none that can be repeated."""
        size = self._model.get_output_embeddings().weight.shape[0]
        real = [[token for token in row if token < size] or [self._config.pad_id] for row in rows]
        longest = max(map(len, real))
        return torch.tensor([[*row, *row[:1] * (longest - len(row))] for row in real], device=self._model.device)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Keskar et al. 2019 (arXiv 1909.05858, section 4.1), as vLLM and transformers have it.

    logits (B, V); seen (B, S) int64, the ids of each row, in any order and any number of times.
    """
    found = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(found > 0, found / penalty, found * penalty))


def groups_of(lengths: Sequence[int]) -> Iterator[slice]:
    """Which prompts of these lengths, in ascending order, are read together."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > TOKENS_PER_PASS:
            yield slice(start, end)
            start = end


def _with_virtual_ids(controls: ControlSet, asked: Asked) -> Ids:
    before, after = controls.virtual_ids(asked.control)
    return before + asked.prompt_ids + after
