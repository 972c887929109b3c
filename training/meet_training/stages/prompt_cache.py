"""Keys and values of prompts under the frozen model, kept for all controls and epochs of stage 1.

Soft prompts that stand after the prompt leave it as it is, so what the model makes of it never changes while the model
is frozen. Prompts go over it once, without gradient; afterwards only virtual tokens and replies do.

L layers, B batch rows, G key-value heads, P prompt tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meet_training.data.batches import Item
from meet_training.stages.layout import Batch, VirtualIds, lay_out_tails
from meet_training.stages.without_dropout import without_dropout

PROMPT_CACHE_MIB = 2048  # where prompts are kept and nobody said how much memory for

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Of each layer, (G, P, D) each."""


class PromptCache:
    """Remembers prompts up to a number of bytes; those beyond are computed each time. Kept in main memory."""

    def __init__(self, max_bytes: int, device: torch.device) -> None:
        self._left = max_bytes
        self._device = device
        self._known: dict[tuple[int, ...], KeysAndValues] = {}

    def __len__(self) -> int:
        return len(self._known)

    def lay_out(
        self, model: nn.Module, items: Sequence[Item], virtual_ids: VirtualIds, pad_id: int
    ) -> tuple[Batch, dict[str, Any]]:
        """A batch of what follows the prompts, and what the model takes for the prompts: keys and values, padded on
        the left; an attention mask (B, P + T); positions (B, T)."""
        from transformers import DynamicCache

        batch = lay_out_tails(items, virtual_ids, pad_id, self._device)
        found = self._look_up(model, batch.prompts, pad_id)
        lengths = torch.tensor([len(prompt) for prompt in batch.prompts], device=self._device)
        longest, num_new = int(lengths.max()), batch.ids.shape[1]
        cache = DynamicCache()
        for layer in range(len(found[0])):
            keys, values = (_padded([each[layer][i] for each in found], longest, self._device) for i in (0, 1))
            cache.update(keys, values, layer)
        columns = torch.arange(longest + num_new, device=self._device)
        mask = (columns >= (longest - lengths)[:, None]).long()
        positions = lengths[:, None] + torch.arange(num_new, device=self._device)
        return batch, {"past_key_values": cache, "attention_mask": mask, "position_ids": positions}

    def _look_up(self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int) -> list[KeysAndValues]:
        """Keys and values of each prompt; those not known are computed, and kept while there is room."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        computed = dict(zip(missing, self._compute(model, missing, pad_id), strict=True)) if missing else {}
        for prompt, own in computed.items():
            size = sum(tensor.nbytes for pair in own for tensor in pair)
            if size <= self._left:
                self._left -= size
                self._known[prompt] = own
        return [self._known.get(prompt) or computed[prompt] for prompt in prompts]

    @torch.no_grad()
    def _compute(self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int) -> list[KeysAndValues]:
        """One pass over the model without its output layer."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[pad_id] * (longest - len(prompt))] for prompt in prompts], device=self._device)
        with without_dropout(model):
            cache = model.get_decoder()(input_ids=ids, use_cache=True).past_key_values  # type: ignore[operator]
        # Padding on the right changes nothing on its left, and is cut off.
        return [
            [
                (layer.keys[i, :, : len(p)].to("cpu", copy=True), layer.values[i, :, : len(p)].to("cpu", copy=True))
                for layer in cache.layers
            ]
            for i, p in enumerate(prompts)
        ]


def fits(model: Any) -> bool:
    """Whether every layer of a model attends to all before it: then its cache is keys and values and nothing else."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return types is None or set(types) == {"full_attention"}


def _padded(tensors: Sequence[Tensor], longest: int, device: torch.device) -> Tensor:
    """(G, P, D) each -> (B, G, longest, D), zeros on the left."""
    out = torch.zeros(len(tensors), tensors[0].shape[0], longest, tensors[0].shape[2], dtype=tensors[0].dtype)
    for row, tensor in zip(out, tensors, strict=True):
        row[:, longest - tensor.shape[1] :] = tensor
    return out.to(device)
