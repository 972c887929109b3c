"""A bundle of many random soft prompts on the 135M model, for the benchmark: what they do to replies is no matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from meet_bundle import BaseModelSource, Manifest, Preference, Probe, SoftPromptControls, seal, writing_bundle

BASE = "smollm2-135m"
UNKNOWN_DIGEST = "0" * 64  # replaced when the bundle is sealed


def random_soft_prompts(
    target: Path, num: int, num_virtual_tokens: int, placement: Literal["before_prompt", "after_prompt"]
) -> Path:
    """Writes the bundle, of preferences `p0`, `p1`, ..., and returns its folder."""
    from meet_training.base_model import resolve_base

    controls = SoftPromptControls(num_virtual_tokens=num_virtual_tokens, placement=placement)
    with writing_bundle(target) as folder:
        model, tokenizer, first = _model(resolve_base(BASE), num * num_virtual_tokens)
        tokenizer.save_pretrained(folder / "model")
        model.save_pretrained(folder / "model")
        probing = Probing(model, tokenizer, first)
        begins = [first + index * num_virtual_tokens for index in range(num)]
        seal(
            folder,
            Manifest(
                name="soft",
                base=BaseModelSource(source=BASE),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="bfloat16",
                controls=controls,
                preferences=tuple(_preference(folder, begin, controls, probing) for begin in begins),
                files={},
            ),
        )
    return target


def _model(base: Path, num_rows: int) -> tuple[Any, Any, int]:
    """The model with so many rows more, its tokenizer, and the first new row. They are rows of words, in no order."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    first = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(first + num_rows, mean_resizing=False)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[first:] = embeddings[torch.randint(first, (num_rows,), generator=torch.Generator().manual_seed(0))]
    return model, AutoTokenizer.from_pretrained(base), first


class Probing:
    """Works out probes in float32."""

    def __init__(self, model: Any, tokenizer: Any, vocab_size: int) -> None:
        self.rows = model.get_input_embeddings().weight.detach().clone()
        self._model = model.float()
        self.vocab_size = vocab_size
        self._prompt = tokenizer("What is rain?")["input_ids"]
        self._reply = tokenizer(" Water that falls from clouds.")["input_ids"]
        self._uncontrolled = self._log_probs([*self._prompt, *self._reply])

    def probe(self, ids: Sequence[int], controls: SoftPromptControls) -> Probe:
        before = controls.placement == "before_prompt"
        whole = [*ids, *self._prompt] if before else [*self._prompt, *ids]
        return Probe(
            token_ids=(*self._prompt, *self._reply),
            start=len(self._prompt),
            controlled=self._log_probs([*whole, *self._reply]),
            uncontrolled=self._uncontrolled,
            dtype="float32",
        )

    def _log_probs(self, ids: list[int]) -> tuple[float, ...]:
        import torch

        num = len(self._reply)
        with torch.no_grad():
            rows = self._model(torch.tensor([ids])).logits[0, -1 - num : -1, : self.vocab_size].log_softmax(-1)
        return tuple(rows[range(num), self._reply].tolist())


def _preference(folder: Path, begin: int, controls: SoftPromptControls, probing: Probing) -> Preference:
    from safetensors.torch import save_file

    name = f"p{(begin - probing.vocab_size) // controls.num_virtual_tokens}"
    ids = range(begin, begin + controls.num_virtual_tokens)
    (folder / "controls" / name).mkdir(parents=True)
    save_file({"soft_prompt": probing.rows[list(ids)]}, folder / "controls" / name / "soft_prompt.safetensors")
    return Preference(
        name=name,
        axis="none",
        path=f"controls/{name}",
        digest=UNKNOWN_DIGEST,
        first_token_id=begin,
        trained_examples=0,
        probe=probing.probe(ids, controls),
    )
