"""Controls as a bundle holds them, for use from Python: load, apply, mix, merge, save.

Plain PEFT and plain transformers on what was exported; none of the code that trained them.

    controls = load_controls("bundles/demo")
    mixed = mix([(controls["concise"], 0.7), (controls["bulleted"], 0.5)])
    with mixed.applied(model) as controlled:
        controlled.generate(torch.tensor([mixed.prompt(ids)]))
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meet_bundle import Bundle, Manifest, SoftPromptControls, open_bundle
from meet_training.errors import TrainingError

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraControl:
    """A LoRA adapter: W becomes W + scale B A in every layer. `factors` are A (r, I) and B (O, r) by layer.

    `folder` is where it was read from, None for one that was made here.
    """

    name: str
    scale: float
    factors: dict[str, tuple[Tensor, Tensor]]
    folder: Path | None = None

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> LoraControl:
        """Reads a folder as PEFT writes it. Raises OSError or KeyError where it is none."""
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        layers = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        factors = {
            layer.removeprefix(_PREFIX): (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"])
            for layer in layers
        }
        return cls(name or folder.name, config["lora_alpha"] / config["r"], factors, folder)

    @property
    def rank(self) -> int:
        return next(iter(self.factors.values()))[0].shape[0]

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """The ids of a rendered prompt under the control: the same ones."""
        return list(ids)

    def delta(self, layer: str) -> Tensor:
        """What it adds to a layer's weight, (O, I)."""
        a, b = self.factors[layer]
        return self.scale * (b @ a)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model under the control, by PEFT; the model itself is as before when the block ends."""
        from peft import PeftModel

        with self._on_disk() as folder:
            wrapped: Any = PeftModel.from_pretrained(model, str(folder))
        wrapped.eval()
        try:
            yield wrapped
        finally:
            wrapped.unload()

    @contextmanager
    def _on_disk(self) -> Iterator[Path]:
        if self.folder is not None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "control")
            yield Path(folder) / "control"

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Adds the control to the model's weights for good."""
        for layer in self.factors:
            weight: Any = model.get_submodule(layer).weight
            weight.add_(self.delta(layer).to(weight))

    def save(self, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does."""
        from peft import LoraConfig

        folder.mkdir(parents=True)
        LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,
            target_modules=sorted({layer.rpartition(".")[2] for layer in self.factors}),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
        ).save_pretrained(str(folder))
        tensors = {}
        for layer, (a, b) in self.factors.items():
            tensors[f"{_PREFIX}{layer}.lora_A.weight"] = a.detach().cpu().clone()
            tensors[f"{_PREFIX}{layer}.lora_B.weight"] = b.detach().cpu().clone()
        # Layers that read one input share their A's memory; safetensors wants each on its own, hence the clones.
        save_file(tensors, folder / "adapter_model.safetensors")


@dataclass(frozen=True)
class SoftPromptControl:
    """A run of virtual tokens. `embeddings` (N, H) are also rows `token_ids` of the bundle's embedding matrix."""

    name: str
    embeddings: Tensor
    token_ids: tuple[int, ...]
    placement: str

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """The ids of a rendered prompt with the virtual tokens where they belong."""
        return [*self.token_ids, *ids] if self.placement == "before_prompt" else [*ids, *self.token_ids]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The bundle's model as it is: a soft prompt is in the ids that `prompt` gives."""
        yield model

    def save(self, folder: Path) -> None:
        """Writes `soft_prompt.safetensors`."""
        folder.mkdir(parents=True)
        save_file({"soft_prompt": self.embeddings.detach().cpu().clone()}, folder / "soft_prompt.safetensors")

    def save_for_peft(self, folder: Path) -> None:
        """Writes a prompt-tuning adapter as PEFT reads it, for the base without the extra rows.

        Raises TrainingError for a soft prompt after the prompt, which PEFT has no name for.
        """
        from peft import PromptTuningConfig

        if self.placement != "before_prompt":
            raise TrainingError(f"control {self.name!r} stands after the prompt; PEFT puts soft prompts before it")
        folder.mkdir(parents=True)
        num, hidden = self.embeddings.shape
        PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=num, token_dim=hidden, inference_mode=True
        ).save_pretrained(str(folder))
        embeddings = self.embeddings.detach().cpu().clone()
        save_file({"prompt_embeddings": embeddings}, folder / "adapter_model.safetensors")


Control = LoraControl | SoftPromptControl
_Kind = TypeVar("_Kind", LoraControl, SoftPromptControl)


def load_controls(bundle: Bundle | Path | str) -> dict[str, Control]:
    """The controls of a bundle by preference. Raises BundleError."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    return {p.name: load_control(opened.path, opened.manifest, p.name) for p in opened.manifest.preferences}


def load_control(folder: Path, manifest: Manifest, name: str) -> Control:
    """One control of a bundle's folder, whose manifest need not be written yet."""
    own = folder / manifest.preference(name).path
    if isinstance(manifest.controls, SoftPromptControls):
        embeddings = load_file(own / "soft_prompt.safetensors")["soft_prompt"]
        return SoftPromptControl(name, embeddings, manifest.virtual_token_ids(name), manifest.controls.placement)
    return LoraControl.load(own, name)


def mix(parts: Sequence[tuple[_Kind, float]]) -> _Kind:
    """Several controls of a bundle as one, each at a strength.

    LoRA: the exact sum of their effects; of the same rank where they share A, else of all ranks together. Soft
    prompts: one after the other, for which no strength but 1 is defined. Raises TrainingError.
    """
    if not parts:
        raise TrainingError("mix: no controls")
    name = "+".join(control.name for control, _ in parts)
    first = parts[0][0]
    if isinstance(first, SoftPromptControl):
        return replace(first, name=name, **_joined(parts))
    return replace(first, name=name, folder=None, factors={layer: _summed(layer, parts) for layer in first.factors})


def _joined(parts: Sequence[tuple[Any, float]]) -> dict[str, Any]:
    if odd := [control.name for control, strength in parts if strength != 1]:
        raise TrainingError(f"mix: a soft prompt is applied or not; {odd[0]!r} has another strength than 1")
    return {
        "embeddings": torch.cat([control.embeddings for control, _ in parts]),
        "token_ids": tuple(token for control, _ in parts for token in control.token_ids),
    }


def _summed(layer: str, parts: Sequence[tuple[Any, float]]) -> tuple[Tensor, Tensor]:
    """A and B of sum_i w_i s_i B_i A_i, over the scale of the first."""
    factors = [control.factors[layer] for control, _ in parts]
    weights = [strength * control.scale / parts[0][0].scale for control, strength in parts]
    a = factors[0][0]
    if all(torch.equal(a, other) for other, _ in factors[1:]):
        return a, sum((w * b for w, (_, b) in zip(weights, factors, strict=True)), torch.zeros_like(factors[0][1]))
    return (
        torch.cat([a for a, _ in factors]),
        torch.cat([w * b for w, (_, b) in zip(weights, factors, strict=True)], dim=1),
    )
