"""Lays examples out as tensors: rows padded on the right, or packed into one row. Knows no model and no loss.

B batch rows, T tokens, M supervised tokens of the batch, R replies of the batch (one an example, two a pair).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meet_training.data.batches import Item
from meet_training.data.render import Rendered

VirtualIds = Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]
"""Control -> ids that stand before its prompt, and between the prompt and the reply. See `ControlSet`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One reply after its prompt. `prompt` and `tail` (virtual tokens, reply) are ids; `supervised` is over `tail`."""

    control: int
    prompt: tuple[int, ...]
    tail: tuple[int, ...]
    supervised: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes over the model at once.

    ids (B, T) int64; predicts (B, T) bool, true where the *next* token is supervised; targets (M,) int64, those next
    tokens in row order; controls (M,) int64, the control of each, -1 for none; replies (M,) int64, which reply each
    is of; token_controls (B, T) or (B, 1) int64, the control of each token; positions (B, T) int64 where rows are
    packed, else None; row_controls (R,) int64, the control of each reply; pairs (P, 2) int64, replies preferred and
    rejected; paired, the example of each pair; prompts, the ids before each tail.
    """

    ids: Tensor
    predicts: Tensor
    targets: Tensor
    controls: Tensor
    replies: Tensor
    token_controls: Tensor
    positions: Tensor | None
    row_controls: Tensor
    pairs: Tensor
    paired: tuple[Rendered, ...]
    prompts: tuple[tuple[int, ...], ...]


Pairs = list[tuple[int, Rendered]]
"""Row of the preferred reply, which that of the rejected one follows, and the example."""


def rows_of(items: Sequence[Item], virtual_ids: VirtualIds) -> tuple[list[Row], Pairs]:
    """The rows of examples, each preferred reply followed by the rejected one; and which rows make a pair."""
    rows: list[Row] = []
    pairs: Pairs = []
    for item in items:
        before, after = virtual_ids(item.control)
        rendered = item.rendered
        mask = rendered.mask or (True,) * len(rendered.reply_ids)
        replies = [(rendered.reply_ids, mask)]
        if rendered.rejected_ids is not None:
            pairs.append((len(rows), rendered))
            replies.append((rendered.rejected_ids, (True,) * len(rendered.rejected_ids)))
        rows.extend(
            Row(item.control, before + rendered.prompt_ids, after + reply, (False,) * len(after) + supervised)
            for reply, supervised in replies
        )
    return rows, pairs


def lay_out(
    items: Sequence[Item], virtual_ids: VirtualIds, pad_id: int, device: torch.device, *, packed: bool = False
) -> Batch:
    """A batch of examples. No attention mask is needed: attention is causal, so a token never sees the padding on its
    right, and nothing is supervised there. Packed rows are told apart by positions that start anew."""
    rows, pairs = rows_of(items, virtual_ids)
    sequences = [row.prompt + row.tail for row in rows]
    predicts = [_predicts(row) for row in rows]
    positions = None
    if packed:
        ids = torch.tensor([[token for sequence in sequences for token in sequence]])
        where = torch.tensor([[flag for flags in predicts for flag in flags]])
        token_controls = torch.tensor([[row.control for row in rows for _ in range(len(row.prompt) + len(row.tail))]])
        positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])[None]
    else:
        length = max(map(len, sequences))
        ids = torch.full((len(rows), length), pad_id)
        where = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, (sequence, flags) in enumerate(zip(sequences, predicts, strict=True)):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            where[i, : len(flags)] = torch.tensor(flags)
        token_controls = torch.tensor([row.control for row in rows])[:, None]
    return _batch(rows, pairs, ids, where, token_controls, positions, device)


def lay_out_tails(items: Sequence[Item], virtual_ids: VirtualIds, pad_id: int, device: torch.device) -> Batch:
    """A batch of what follows the prompts, for a model that has the prompts' keys and values already. The first
    virtual token of a tail predicts nothing, so nothing is lost: it takes virtual tokens after the prompt."""
    rows, pairs = rows_of(items, virtual_ids)
    length = max(len(row.tail) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    where = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.tail)] = torch.tensor(row.tail)
        where[i, : len(row.tail) - 1] = torch.tensor(row.supervised[1:])
    token_controls = torch.tensor([row.control for row in rows])[:, None]
    return _batch(rows, pairs, ids, where, token_controls, None, device)


def _predicts(row: Row) -> list[bool]:
    """Over prompt and tail: whether the next token is supervised."""
    return [False] * (len(row.prompt) - 1) + list(row.supervised) + [False]


def _batch(
    rows: list[Row],
    pairs: Pairs,
    ids: Tensor,
    predicts: Tensor,
    token_controls: Tensor,
    positions: Tensor | None,
    device: torch.device,
) -> Batch:
    targets = [t for row in rows for t, supervised in zip(row.tail, row.supervised, strict=True) if supervised]
    counts = torch.tensor([sum(row.supervised) for row in rows])
    controls = torch.tensor([row.control for row in rows])
    return Batch(
        ids=ids.to(device),
        predicts=predicts.to(device),
        targets=torch.tensor(targets, device=device),
        controls=controls.repeat_interleave(counts).to(device),
        replies=torch.arange(len(rows)).repeat_interleave(counts).to(device),
        token_controls=token_controls.to(device),
        positions=None if positions is None else positions.to(device),
        row_controls=controls.to(device),
        pairs=torch.tensor([(i, i + 1) for i, _ in pairs], dtype=torch.long, device=device).reshape(-1, 2),
        paired=tuple(example for _, example in pairs),
        prompts=tuple(row.prompt for row in rows),
    )
