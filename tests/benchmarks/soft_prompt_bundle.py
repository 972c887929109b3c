"""A bundle of many soft prompts on the 135M model, for the benchmark: all say the same, each in rows of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from meet_bundle import BaseModelSource, Manifest, Preference, Probe, SoftPromptControls, seal, writing_bundle

BASE = "smollm2-135m"
UNKNOWN_DIGEST = "0" * 64  # replaced when the bundle is sealed
TEXT = "Answer as a friend would, in plain words, and say what matters most first. Be kind, be clear and be brief, and "


def same_soft_prompts(
    target: Path, num: int, num_virtual_tokens: int, placement: Literal["before_prompt", "after_prompt"]
) -> Path:
    """Writes the bundle, of preferences `p0`, `p1`, ..., and returns its folder."""
    from meet_training.base_model import resolve_base

    controls = SoftPromptControls(num_virtual_tokens=num_virtual_tokens, placement=placement)
    with writing_bundle(target) as folder:
        model, tokenizer, first = _model(resolve_base(BASE), num, num_virtual_tokens)
        tokenizer.save_pretrained(folder / "model")
        model.save_pretrained(folder / "model")
        rows = model.get_input_embeddings().weight[first : first + num_virtual_tokens].detach().clone()
        probe = _probe(model.float(), tokenizer, first, controls)
        preferences = [
            _preference(folder, f"p{index}", first + index * num_virtual_tokens, rows, probe) for index in range(num)
        ]
        seal(
            folder,
            Manifest(
                name="soft",
                base=BaseModelSource(source=BASE),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="bfloat16",
                controls=controls,
                preferences=tuple(preferences),
                files={},
            ),
        )
    return target


def _model(base: Path, num: int, num_virtual_tokens: int) -> tuple[Any, Any, int]:
    """The model with rows for so many soft prompts more, its tokenizer, and the first new row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    first = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(first + num * num_virtual_tokens, mean_resizing=False)
    embeddings = model.get_input_embeddings().weight
    ids = tokenizer(TEXT * num_virtual_tokens)["input_ids"][:num_virtual_tokens]
    with torch.no_grad():
        embeddings[first:] = embeddings[ids].repeat(num, 1)
    return model, tokenizer, first


def _probe(model: Any, tokenizer: Any, first: int, controls: SoftPromptControls) -> Probe:
    """The probe of each of them, worked out in float32 with the first: a greedy reply to it."""
    import torch

    prompt = tokenizer("What is rain?")["input_ids"]
    ids = range(first, first + controls.num_virtual_tokens)
    whole = [*ids, *prompt] if controls.placement == "before_prompt" else [*prompt, *ids]
    greedy = model.generate(torch.tensor([whole]), do_sample=False, max_new_tokens=24, suppress_tokens=[*ids])
    reply = greedy[0, len(whole) :].tolist()

    def log_probs(before: Sequence[int]) -> tuple[float, ...]:
        with torch.no_grad():
            rows = model(torch.tensor([[*before, *reply]])).logits[0, len(before) - 1 : -1, :first].log_softmax(-1)
        return tuple(rows[range(len(reply)), reply].tolist())

    return Probe(
        token_ids=(*prompt, *reply),
        start=len(prompt),
        controlled=log_probs(whole),
        uncontrolled=log_probs(prompt),
        dtype="float32",
    )


def _preference(folder: Path, name: str, begin: int, rows: Any, probe: Probe) -> Preference:
    from safetensors.torch import save_file

    (folder / "controls" / name).mkdir(parents=True)
    save_file({"soft_prompt": rows}, folder / "controls" / name / "soft_prompt.safetensors")
    return Preference(
        name=name,
        axis="none",
        path=f"controls/{name}",
        digest=UNKNOWN_DIGEST,
        first_token_id=begin,
        trained_examples=0,
        probe=probe,
    )
