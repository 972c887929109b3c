"""Negative log-likelihood of supervised tokens under a model, with no logits where nothing is supervised.

The output layer is a fifth of a small model and its logits are most of its memory, so it sees the supervised positions
alone, some at a time. Where the layer is a plain product with frozen weights, as in stage 1, gradients are worked out
along with the loss and no logits outlive their chunk; otherwise chunks are computed again in the backward pass.

B batch rows, T tokens, H hidden size, V vocabulary, M supervised tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from meet_training.stages import packed_attention
from meet_training.stages.layout import Batch

# What some models do to logits behind their output layer (fields of their configuration, and the value for "nothing").
_AFTER_LOGITS = {
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
}

# Logits that are kept for the backward pass rather than computed again there: 256 MiB in float32.
_MAX_KEPT_LOGITS = 1 << 26

# Logits that are worked on at a time on CPUs, 4 MiB in float32.
_TILE = 1 << 20


def reply_nll(model: nn.Module, batch: Batch, *, chunk: int = 256, **prompt_cache: Any) -> Tensor:
    """Negative log-likelihood of every supervised token, (M,) float32, in nats, in row order.

    `prompt_cache` is what the model takes for keys and values that stand before the batch.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    given: dict[str, Any] = {"input_ids": batch.ids, "use_cache": bool(prompt_cache), **prompt_cache}
    if batch.positions is not None:
        given |= {"position_ids": batch.positions, **packed_attention.arguments(model, batch.positions)}
    if not _is_plain(model, head):
        with _only_at(head, batch.predicts):
            logits: Tensor = model(**given).logits  # (1, M, V)
        return cross_entropy(logits[0].float(), batch.targets, reduction="none")
    with _captured(head, batch.predicts) as captured:
        model(**given)
    hidden, weight = captured[0], head.weight  # (M, H), (V, H)
    pieces = zip(torch.split(hidden, chunk), torch.split(batch.targets, chunk), strict=True)
    if not weight.requires_grad or not torch.is_grad_enabled():
        return torch.cat([_FrozenHeadNll.apply(h, weight, t) for h, t in pieces])  # type: ignore[no-untyped-call]
    if len(hidden) * len(weight) <= _MAX_KEPT_LOGITS:
        return _nll(hidden, weight, batch.targets)
    return torch.cat([checkpoint(_nll, h, weight, t, use_reentrant=False) for h, t in pieces])


def _nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(nn.functional.linear(hidden, weight).float(), targets, reduction="none")


class _FrozenHeadNll(torch.autograd.Function):
    """-ln softmax(h W')[target] of each row of h, and its gradient (softmax - onehot) W, in one go; W gets none."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """hidden (m, H), weight (V, H), targets (m,) -> (m,) float32."""
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        h, w = (hidden, weight) if dtype is None else (hidden.to(dtype), weight.to(dtype))
        logits = h @ w.t()  # (m, V)
        wanted = ctx.needs_input_grad[0]
        nll = _nll_of_logits(logits, targets, turn_into_gradient=wanted)
        if wanted:
            ctx.save_for_backward((logits @ w).to(hidden.dtype))
        return nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of hidden, (m, H)."""
        (per_token,) = ctx.saved_tensors
        return (per_token * gradients[0][:, None]).to(per_token.dtype), None, None


def _nll_of_logits(logits: Tensor, targets: Tensor, *, turn_into_gradient: bool) -> Tensor:
    """logits (m, V), targets (m,) -> (m,) float32. Leaves softmax - onehot in `logits` where asked to.

    In float32, on CPUs a few rows at a time: what fits in the cache costs a fifth of what goes through memory.
    """
    nll = torch.empty(len(targets), device=logits.device)
    num_rows = max(1, _TILE // logits.shape[1]) if logits.device.type == "cpu" else len(targets)
    work = torch.empty((min(num_rows, len(targets)), logits.shape[1]), device=logits.device)
    for piece, target, out in zip(*(torch.split(t, num_rows) for t in (logits, targets, nll)), strict=True):
        z = work[: len(piece)].copy_(piece)
        z -= z.amax(-1, keepdim=True)
        out.copy_(-z.gather(1, target[:, None])[:, 0])
        total = z.exp_().sum(-1, keepdim=True)
        out += total[:, 0].log()
        if turn_into_gradient:
            z /= total
            z[torch.arange(len(target), device=target.device), target] -= 1.0
            piece.copy_(z)
    return nll


def _is_plain(model: nn.Module, head: nn.Module) -> bool:
    """Whether logits are nothing but hidden states times a matrix."""
    config: Any = getattr(model, "config", None)
    # Of a model that reads more than text, the fields stand in the configuration of the part that does.
    configs = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    untouched = all(
        getattr(each, field, nothing) in (None, nothing) for each in configs for field, nothing in _AFTER_LOGITS.items()
    )
    return type(head) is nn.Linear and head.bias is None and untouched


@contextmanager
def _only_at(head: nn.Module, predicts: Tensor) -> Iterator[None]:
    """Within the block the output layer sees the chosen positions alone. What the model does to logits afterwards
    stays in force."""

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][predicts].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _captured(head: nn.Module, predicts: Tensor) -> Iterator[list[Tensor]]:
    """Within the block the output layer computes nothing; the list gets the chosen hidden states, (M, H)."""
    captured: list[Tensor] = []

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(args[0][predicts])
        return (args[0][:, :0], *args[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        yield captured
    finally:
        handle.remove()
