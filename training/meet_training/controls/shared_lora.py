"""LoRA controls that share one frozen A per layer; each control learns its own B.

With A shared, sum_i w_i B_i A is again one adapter of the same rank, so every mix and strength is exact.
One pass over the model serves rows of different controls: A is applied once, and each row meets its own
B only. Exports what PEFT writes (https://github.com/huggingface/peft, `LoraConfig`).

B batch rows, T tokens, I and O inputs and outputs of a layer, r rank, K controls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from meet_bundle import LoraControls
from meet_training.config import LoraConfig
from meet_training.errors import TrainingError

# Layers that read the same input get the same A, so that an engine may multiply by it once.
SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


@dataclass(slots=True)
class Routing:
    """Which control each row of the running batch is under. One object is seen by all layers of a model."""

    present: tuple[int, ...] = ()
    mask: Tensor | None = field(default=None)  # (B, K', 1): row b is under present[k]; None if all rows are alike

    def set_rows(self, rows: Sequence[int], device: torch.device) -> None:
        """Rows under control `rows[b]`; -1 is uncontrolled."""
        self.present = tuple(sorted({row for row in rows if row >= 0}))
        alike = len(set(rows)) == 1
        self.mask = None
        if self.present and not alike:
            of_row = torch.tensor(rows, device=device)[:, None]
            self.mask = (of_row == torch.tensor(self.present, device=device)).unsqueeze(-1)


class SharedLoraLinear(nn.Module):
    """y = W x + alpha / r * B_k A x, k being the control of the row (Hu et al. 2021, equation 3, with A shared).

    `b[k]` is (O, r) and starts at zero, so an untrained control changes nothing; `a` is (r, I) and never trained.
    """

    def __init__(self, base: nn.Linear, a: Tensor, num_controls: int, scale: float, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.routing = routing
        device = base.weight.device
        self.register_buffer("a", a.to(device), persistent=False)
        self.a: Tensor
        shape = (base.out_features, a.shape[0])
        self.b = nn.ParameterList(
            nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device)) for _ in range(num_controls)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) -> (B, T, O). One product with A and one with the B's present, however many rows."""
        y: Tensor = self.base(x)
        present = self.routing.present
        if not present:
            return y
        h = nn.functional.linear(x, self.a.to(x.dtype)) * self.scale  # (B, T, r)
        if self.routing.mask is None:
            b = self.b[present[0]]
        else:
            mask = self.routing.mask.to(h.dtype)  # (B, K', 1)
            h = (h.unsqueeze(2) * mask.unsqueeze(1)).flatten(2)  # (B, T, K' r), zero but for the row's own control
            b = torch.cat([self.b[k] for k in present], dim=1)  # (O, K' r)
        delta: Tensor = nn.functional.linear(h, b.to(h.dtype))
        return y + delta.to(y.dtype)


class SharedLora:
    """The LoRA controls of one run, attached to a model in place of its linear layers."""

    def __init__(self, model: nn.Module, names: Sequence[str], config: LoraConfig, seed: int) -> None:
        """Replaces the target layers of `model` by SharedLoraLinear. Raises TrainingError where there are none."""
        self.names = tuple(names)
        self._config = config
        self._routing = Routing()
        self._layers: dict[str, SharedLoraLinear] = {}
        for path, linear in target_layers(model, config.target_modules).items():
            a = make_a(path, config.rank, linear.in_features, seed)
            layer = SharedLoraLinear(linear, a, len(names), config.alpha / config.rank, self._routing)
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
            self._layers[path] = layer
        self._device = next(model.parameters()).device

    def parameters_of(self, control: int) -> list[nn.Parameter]:
        return [layer.b[control] for layer in self._layers.values()]

    @contextmanager
    def applied(self, rows: Sequence[int]) -> Iterator[None]:
        self._routing.set_rows(rows, self._device)
        try:
            yield
        finally:
            self._routing.set_rows((), self._device)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{path}": layer.b[k].detach().cpu().clone()
            for k, name in enumerate(self.names)
            for path, layer in self._layers.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for k, name in enumerate(self.names):
                for path, layer in self._layers.items():
                    layer.b[k].copy_(state[f"{name}/{path}"])

    def detach(self, model: nn.Module) -> None:
        """Puts the model's own layers back, so that it is saved as it came."""
        for path, layer in self._layers.items():
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.base)

    def save(self, control: int, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does, in float32."""
        from peft import LoraConfig as PeftLoraConfig

        folder.mkdir(parents=True)
        suffixes = list(self.describe().target_modules)
        PeftLoraConfig(
            r=self._config.rank,
            lora_alpha=self._config.alpha,
            target_modules=sorted(suffixes),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
        ).save_pretrained(str(folder))
        tensors = {}
        for path, layer in self._layers.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = layer.a.detach().cpu().contiguous()
            tensors[f"base_model.model.{path}.lora_B.weight"] = layer.b[control].detach().cpu().contiguous()
        # Layers that read one input share their A's memory; safetensors wants each on its own.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")

    def describe(self) -> LoraControls:
        suffixes = sorted({path.rpartition(".")[2] for path in self._layers})
        return LoraControls(
            rank=self._config.rank, alpha=self._config.alpha, target_modules=tuple(suffixes), shared_a=True
        )


def target_layers(model: nn.Module, wanted: tuple[str, ...] | str) -> dict[str, nn.Linear]:
    """The linear layers to adapt by path: all but the output layer, or those whose last name is wanted.

    Raises TrainingError, naming what the model has, where a wanted name is in none.
    """
    output = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not output
    }
    names = {path.rpartition(".")[2] for path in linear}
    if wanted == "all-linear":
        return linear
    if unknown := sorted(set(wanted) - names):
        raise TrainingError(
            f"controls.target_modules: the model has no linear layer {', '.join(unknown)}; it has "
            f"{', '.join(sorted(names))}"
        )
    return {path: module for path, module in linear.items() if path.rpartition(".")[2] in wanted}


def make_a(path: str, rank: int, num_inputs: int, seed: int) -> Tensor:
    """The frozen A of a layer, (r, I): uniform in +-1/sqrt(I), PEFT's own start, drawn by seed and place.

    Layers that read the same input (q, k, v; gate, up) get the same one.
    """
    parent, _, last = path.rpartition(".")
    group = next((sorted(names)[0] for names in SAME_INPUT if last in names), last)
    place = hashlib.sha256(f"{seed}/{parent}.{group}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(place[:7], "big"))
    bound = num_inputs**-0.5
    return torch.empty(rank, num_inputs).uniform_(-bound, bound, generator=generator)
