"""Causal attention over packed rows on CPUs: one example at a time, so that nothing is computed for padding.

An implementation for transformers' `AttentionInterface`. PyTorch's own fused attention has a slow backward pass in
bfloat16 on CPUs, and for packed rows it takes a mask over all pairs of a row's tokens. Knows no control and no loss.

T tokens of a row, L tokens of an example, H heads, G key-value heads, D head size, E that of values (D but in latent
attention, as DeepSeek's).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from meet_training.errors import TrainingError
from meet_training.stages.prompt_cache import fits
from meet_training.stages_config import SpeedConfig

NAME = "meet_packed"

# Up to here an example's attention weights, (H, L, L), are kept for the backward pass.
LONGEST = 1024

# Kinds of layers, as transformers calls them, that take from positions where an example of a packed row starts.
_BY_POSITIONS = {"full_attention", "sliding_attention"}

# Fields of a model's configuration under which attention is more than this, where they are set.
_MORE = ("sliding_window", "attn_logit_softcapping", "attention_dropout")


def packs(model: Any, speed: SpeedConfig, device: torch.device) -> bool:
    """Whether rows are packed: where FlashAttention or, on a CPU, this attention keeps examples apart, or as told.

    Raises TrainingError where it is told and the model does not keep them apart.
    """
    if speed.packing == "never":
        return False
    flash = "flash" in str(model.config._attn_implementation)
    if not flash and stands_in(model, speed, device) and take(model, device):
        return True
    if speed.packing == "always" and not keeps_apart(model):
        raise TrainingError(
            f"speed.packing: 'always': examples of one row would run into one another in {type(model).__name__}, which "
            f"has layers that go by more than attention and positions; use auto"
        )
    return speed.packing == "always" or (flash and keeps_apart(model))


def keeps_apart(model: Any) -> bool:
    """Whether all layers of a model look back by an attention that is told by positions where an example starts: those
    of state spaces and convolutions are not, nor is attention in chunks, nor that of models which build its mask from
    something else."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return set(types) <= _BY_POSITIONS and bool(model._supports_attention_backend)


def stands_in(model: Any, speed: SpeedConfig, device: torch.device) -> bool:
    """Whether this attention would do in place of the model's."""
    return speed.packing != "never" and not speed.attention and can_take(model, device)


def can_take(model: Any, device: torch.device) -> bool:
    """Whether a model could attend this way on that device."""
    return device.type == "cpu" and is_plain(model)


def take(model: Any, device: torch.device) -> bool:
    """Makes a model attend this way, where it can: from then on it takes packed rows only. Returns whether it does."""
    if not can_take(model, device):
        return False
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    return True


def is_plain(model: Any) -> bool:
    """Whether a model attends to all tokens before each one, by softmax and nothing more, and lets others do it."""
    config = model.config.get_text_config()
    more = any(getattr(config, field, None) for field in _MORE)
    return fits(model) and not more and bool(model._supports_attention_backend)


def arguments(model: Any, positions: Tensor) -> dict[str, Tensor]:
    """What a model that attends this way is to be told of packed rows: where each example starts, and the end."""
    if model.config._attn_implementation != NAME:
        return {}
    starts = (positions[0] == 0).nonzero()[:, 0]
    return {"cu_seq_lens_q": torch.cat([starts, starts.new_tensor([positions.shape[1]])])}


def attend(
    module: nn.Module,  # noqa: ARG001 - the interface is transformers'
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - there is none for an implementation without a mask of its own
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key (1, G, T, D) and value (1, G, T, E) -> (1, T, H, E), and no weights."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    q, k, v = (tensor[0].to(dtype) for tensor in (query, key, value))
    lengths = cu_seq_lens_q.diff().tolist()
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if max(lengths) > LONGEST:
        return _fused(q, k, v, lengths, scale)[None], None
    attended: Tensor = _Attend.apply(q, k, v, lengths, scale)  # type: ignore[no-untyped-call]
    return attended[None], None


def _fused(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """PyTorch's own, which keeps no weights, example by example. -> (T, H, E)"""
    examples = zip(*(torch.split(tensor[None], lengths, dim=2) for tensor in (q, k, v)), strict=True)
    attended = [
        scaled_dot_product_attention(one, keys, values, is_causal=True, scale=scale, enable_gqa=True)
        for one, keys, values in examples
    ]
    return torch.cat([one[0].transpose(0, 1) for one in attended])


class _Attend(torch.autograd.Function):
    """softmax(scale q k' + causal mask) v. Heads that share keys are rows of one product."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
        """q (H, T, D), k (G, T, D) and v (G, T, E) -> (T, H, E)"""
        num_heads, num_tokens, size = q.shape  # of queries and keys; values may have another size
        num_groups = k.shape[0]
        longest, each = max(lengths), num_heads // num_groups
        future = torch.full((each, longest, longest), float("-inf"), dtype=q.dtype).triu(1)
        out, weights, start = q.new_empty(num_tokens, num_heads, v.shape[2]), [], 0
        with torch.autocast("cpu", enabled=False):
            for length in lengths:
                end = start + length
                mask = future[:, :length, :length].reshape(each * length, length).expand(num_groups, -1, -1)
                rows = q[:, start:end].reshape(num_groups, each * length, size)
                scores = torch.baddbmm(mask, rows, k[:, start:end].transpose(1, 2), alpha=scale)
                weight = torch.softmax(scores, -1)  # in float32 inside, whatever goes in and out
                out[start:end] = (weight @ v[:, start:end]).view(num_heads, length, -1).transpose(0, 1)
                weights.append(weight)
                start = end
        ctx.save_for_backward(q, k, v, *weights)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        grad_q, grad_k, grad_v = (_token_major(tensor) for tensor in (q, k, v))
        num_groups, start = k.shape[0], 0
        for length, weight in zip(ctx.lengths, weights, strict=True):
            end = start + length
            grad = gradients[0][start:end].transpose(0, 1).reshape(num_groups, -1, v.shape[2])
            rows = q[:, start:end].reshape(num_groups, -1, q.shape[2])
            grad_v[:, start:end] = weight.transpose(1, 2) @ grad
            grad_weight = grad @ v[:, start:end].transpose(1, 2)
            grad_scores = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype).mul_(ctx.scale)
            grad_q[:, start:end] = (grad_scores @ k[:, start:end]).view(q.shape[0], length, -1)
            grad_k[:, start:end] = grad_scores.transpose(1, 2) @ rows
            start = end
        return grad_q, grad_k, grad_v, None, None


def _token_major(like: Tensor) -> Tensor:
    """An empty tensor of the shape (H, T, D), laid out as the layers before attention have theirs."""
    return like.new_empty(like.shape[1], like.shape[0], like.shape[2]).transpose(0, 1)
