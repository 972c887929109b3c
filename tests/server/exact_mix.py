"""What a mix should give: transformers on a model into whose weights the weighted sum of PEFT's deltas was merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tiny_bundle import chat_ids
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def mixed_model(bundle: Path, mix: Mapping[Path, float]) -> Any:
    """The bundle's model with sum_i w_i (W_i - W) added to each weight W; W_i is PEFT's merge of control folder i."""
    base = _weights(bundle, None)
    model: Any = LlamaForCausalLM.from_pretrained(bundle / "model", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for folder, strength in mix.items():
                parameter += strength * (_weights(bundle, folder)[name] - base[name])
    return model.eval()


def exact_replies(bundle: Path, mix: Mapping[Path, float], prompts: Sequence[str], num_tokens: int) -> list[list[int]]:
    """Greedy replies to chats of one message, as token ids."""
    model = mixed_model(bundle, mix)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle / "model")
    replies = []
    for prompt in prompts:
        ids = torch.tensor([chat_ids(tokenizer, prompt)])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None
        )
        replies.append(out[0, ids.shape[1] :].tolist())
    return replies


@lru_cache
def _weights(bundle: Path, folder: Path | None) -> dict[str, torch.Tensor]:
    """In float64, so that what is compared with is not itself rounded."""
    model: Any = LlamaForCausalLM.from_pretrained(bundle / "model", dtype=torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model.double(), folder).merge_and_unload()
    return {name: parameter.double().clone() for name, parameter in model.named_parameters()}
