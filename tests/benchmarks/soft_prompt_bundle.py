"""A bundle of many random soft prompts on the 135M model, for the benchmark: what they do to replies is no matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from meet_bundle import BaseModelSource, Manifest, Preference, Probe, SoftPromptControls, seal, writing_bundle

BASE = "smollm2-135m"
UNKNOWN_DIGEST = "0" * 64  # replaced when the bundle is sealed


def random_soft_prompts(
    target: Path, num: int, num_virtual_tokens: int, placement: Literal["before_prompt", "after_prompt"]
) -> Path:
    """Writes the bundle, of preferences `p0`, `p1`, ..., and returns its folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from meet_training.base_model import resolve_base

    base = resolve_base(BASE)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    first = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(first + num * num_virtual_tokens, mean_resizing=False)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        picked = torch.randint(first, (num * num_virtual_tokens,), generator=generator)
        embeddings[first:] = embeddings[picked]  # rows of real words, in no order
    prompt = tokenizer("What is rain?")["input_ids"]
    reply = tokenizer(" Water that falls from clouds.")["input_ids"]
    with writing_bundle(target) as folder:
        tokenizer.save_pretrained(folder / "model")
        model.save_pretrained(folder / "model")
        model.float()

        def log_probs(ids: list[list[int]]) -> Any:
            with torch.no_grad():
                rows = model(torch.tensor(ids)).logits[:, -1 - len(reply) : -1, :first].log_softmax(-1)
            return rows.gather(2, torch.tensor(reply).expand(len(ids), -1)[:, :, None])[:, :, 0].tolist()

        uncontrolled = log_probs([[*prompt, *reply]])[0]
        preferences = []
        for index in range(num):
            begin = first + index * num_virtual_tokens
            ids = list(range(begin, begin + num_virtual_tokens))
            whole = [*ids, *prompt] if placement == "before_prompt" else [*prompt, *ids]
            path = f"controls/p{index}"
            (folder / path).mkdir(parents=True)
            save_file({"soft_prompt": embeddings[ids].detach().clone()}, folder / path / "soft_prompt.safetensors")
            probe = Probe(
                token_ids=(*prompt, *reply),
                start=len(prompt),
                controlled=log_probs([[*whole, *reply]])[0],
                uncontrolled=uncontrolled,
                dtype="float32",
            )
            preferences.append(
                Preference(
                    name=f"p{index}",
                    axis="none",
                    path=path,
                    digest=UNKNOWN_DIGEST,
                    first_token_id=begin,
                    trained_examples=0,
                    probe=probe,
                )
            )
        seal(
            folder,
            Manifest(
                name="soft",
                base=BaseModelSource(source=BASE),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="bfloat16",
                controls=SoftPromptControls(num_virtual_tokens=num_virtual_tokens, placement=placement),
                preferences=tuple(preferences),
                files={},
            ),
        )
    return target
