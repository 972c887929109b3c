"""A bundle of random LoRA controls on a real model: as costly to serve as trained ones, and made in seconds.

They are weak, so that in bfloat16 they pass the proof of what is served, which random noise of a trained control's size
would not; their probes are recorded in float32, where an effect so small is not lost in rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meet_bundle import BaseModelSource, LoraControls, Manifest, Preference, Probe, seal, writing_bundle

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16.0
UNKNOWN_DIGEST = "0" * 64  # replaced when the bundle is sealed


def smollm2() -> Path:
    """The folder of the model that controls are measured on unless the user names another."""
    from meet_training.base_model import resolve_base

    return resolve_base("smollm2-135m")


def make_lora_bundle(model: Path, target: Path, num_controls: int) -> Path:
    """Writes a bundle of controls `c0`, `c1` ... that share one A, on a copy of the model, and returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    message = [{"role": "user", "content": "What is rain?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)
    reply = tokenizer("Rain is water that falls from clouds.")["input_ids"]
    with writing_bundle(target) as folder:
        uncontrolled = _log_probs(base, prompt, reply)
        base.to(torch.bfloat16).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        preferences = [
            _preference(folder, f"c{index}", index, prompt, reply, uncontrolled) for index in range(num_controls)
        ]
        seal(
            folder,
            Manifest(
                name="bench",
                base=BaseModelSource(source=str(model)),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="bfloat16",
                controls=LoraControls(rank=RANK, alpha=ALPHA, target_modules=TARGETS, shared_a=True),
                preferences=tuple(preferences),
                files={},
            ),
        )
    return target


def _preference(
    folder: Path, name: str, seed: int, prompt: list[int], reply: list[int], uncontrolled: tuple[float, ...]
) -> Preference:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model: Any = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))).eval()
    by_input: dict[tuple[str, int], Any] = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_A" in key:
                # One A for all controls, and for the layers that read one input, as training makes it.
                block, _, _ = key.partition("_proj")
                where = (block.rpartition(".")[0] + ("o" if "o_proj" in key else ""), parameter.shape[1])
                made = torch.Generator().manual_seed(len(by_input))
                value = by_input.setdefault(
                    where, torch.randn(parameter.shape, generator=made) / parameter.shape[1] ** 0.5
                )
                parameter.copy_(value)
            elif "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 5e-4)
    model.save_pretrained(folder / "controls" / name)
    (folder / "controls" / name / "README.md").unlink(missing_ok=True)
    return Preference(
        name=name,
        axis=name,
        path=f"controls/{name}",
        digest=UNKNOWN_DIGEST,
        trained_examples=1,
        probe=Probe(
            token_ids=(*prompt, *reply),
            start=len(prompt),
            controlled=_log_probs(model, prompt, reply),
            uncontrolled=uncontrolled,
            dtype="float32",
        ),
    )


def _log_probs(model: Any, prompt: list[int], reply: list[int]) -> tuple[float, ...]:
    import torch

    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *reply]])).logits[0].float().log_softmax(-1)
    return tuple(float(rows[len(prompt) - 1 + index, token]) for index, token in enumerate(reply))
