"""LoRA controls: one adapter per preference, all with one frozen A per layer, or each with its own A.

With A shared, sum_i w_i B_i A is again one adapter of the same rank, so every mix and strength is exact.
One pass over the model serves rows of different controls: A is applied once, and each token meets its own
B only. Exports what PEFT writes (https://github.com/huggingface/peft, `LoraConfig`).

B batch rows, T tokens, I and O inputs and outputs of a layer, r rank, K controls, K' controls in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from meet_bundle import LoraControls
from meet_training.controls.target_layers import target_layers
from meet_training.controls_config import LoraConfig
from meet_training.errors import TrainingError

# Layers that read the same input get the same A, so that it is multiplied by once, in training and in an engine.
SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
WEIGHTS = "adapter_model.safetensors"


@dataclass(slots=True)
class Routing:
    """Which control each token of the running batch is under. One object is seen by all layers of a model."""

    present: tuple[int, ...] = ()
    mask: Tensor | None = None  # (B, T | 1, K', 1): the token is under present[k]; None where all tokens are alike
    inner: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # input -> its product with A, by group

    def route(self, token_controls: Tensor) -> None:
        """token_controls (B, T) or (B, 1) int64, the control of each token; -1 is uncontrolled."""
        found = sorted(set(token_controls.flatten().tolist()))
        self.present, self.mask = tuple(control for control in found if control >= 0), None
        self.inner.clear()
        if self.present and len(found) > 1:
            present = torch.tensor(self.present, device=token_controls.device)
            self.mask = (token_controls[..., None] == present).unsqueeze(-1)

    def clear(self) -> None:
        """From now on everything is uncontrolled."""
        self.present, self.mask = (), None
        self.inner.clear()


class ControlledLinear(nn.Module):
    """y = W x + alpha / r * B_k A_k x, k being the control of the token (Hu et al. 2021, equation 3).

    `b[k]` is (O, r) and starts at zero, so an untrained control changes nothing. Where A is shared, `a[0]` (r, I) is
    everybody's and never trained; else `a[k]` is trained with `b[k]`.
    """

    def __init__(
        self,
        base: nn.Linear,
        a: Sequence[Tensor],
        num_controls: int,
        scale: float,
        routing: Routing,
        *,
        share_a: bool = True,
    ) -> None:
        """`a` is the one shared A, or the start of each control's own; layers of one input get the same shared one."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.routing = routing
        self.group = ""  # of layers that share input and A; empty: none does
        device = base.weight.device
        self.shares_a = share_a
        own = [tensor.to(device) for tensor in a]
        # A buffer that is not saved, and shared by the layers of a group; a parameter where it is trained.
        self.a: Any
        if self.shares_a:
            self.register_buffer("a", own[0][None], persistent=False)
        else:
            self.a = nn.ParameterList(nn.Parameter(tensor.clone()) for tensor in own)
        shape = (base.out_features, own[0].shape[0])
        self.b = nn.ParameterList(
            nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device)) for _ in range(num_controls)
        )

    def a_of(self, control: int) -> Tensor:
        """(r, I)"""
        a: Tensor = self.a[0 if self.shares_a else control]
        return a

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) or (B T, I) -> the same of O. One product with A and one with the B's present, however many
        rows."""
        y: Tensor = self.base(x)
        present = self.routing.present
        if not present:
            return y
        h = self._inner(x)  # (B, T, K' r), zero but for the token's own control
        b = self.b[present[0]] if len(present) == 1 else torch.cat([self.b[k] for k in present], dim=1)  # (O, K' r)
        flat = torch.addmm(y.flatten(0, -2), h.flatten(0, -2).to(y.dtype), b.to(y.dtype).t(), alpha=self.scale)
        return flat.view_as(y)

    def _inner(self, x: Tensor) -> Tensor:
        """A x, with zeros where a token is under another control. Layers of one input and one A compute it once."""
        routing = self.routing
        known = routing.inner.get(self.group) if self.group else None
        if known is not None and known[0] is x:
            return known[1]
        if self.shares_a or len(routing.present) == 1:
            h = nn.functional.linear(x, self.a_of(routing.present[0]).to(x.dtype)).unsqueeze(-2)  # (B, T, 1, r)
        else:
            a = torch.cat([self.a_of(k) for k in routing.present])
            h = nn.functional.linear(x, a.to(x.dtype))
            h = h.view(*h.shape[:-1], len(routing.present), -1)  # (B, T, K', r)
        if routing.mask is not None:
            h = h * _laid_out_as(x, routing.mask).to(h.dtype)  # (B, T, K', r)
        h = h.flatten(-2)
        if self.group:
            routing.inner[self.group] = (x, h)
        return h


class LoraTuning:
    """The LoRA controls of one run, attached to a model in place of its linear layers. A `ControlSet`."""

    def __init__(self, model: nn.Module, names: Sequence[str], config: LoraConfig, seed: int) -> None:
        """Replaces the target layers of `model` by ControlledLinear. Raises TrainingError where there are none."""
        self.names = tuple(names)
        self._config = config
        self._routing = Routing()
        self._layers: dict[str, ControlledLinear] = {}
        for path, linear in target_layers(model, config.target_modules).items():
            draws = [""] if config.share_a else [f"{name}/" for name in names]
            a = [make_a(path, config.rank, linear.in_features, f"{draw}{seed}") for draw in draws]
            scale = config.alpha / config.rank
            layer = ControlledLinear(linear, a, len(names), scale, self._routing, share_a=config.share_a)
            layer.group = _group(path) if config.share_a else ""
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
            self._layers[path] = layer

    def parameters_of(self, control: int) -> list[nn.Parameter]:
        layers = self._layers.values()
        own_a = [] if self._config.share_a else [layer.a[control] for layer in layers]
        return [*own_a, *(layer.b[control] for layer in layers)]

    def virtual_ids(self, control: int) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ARG002
        return (), ()

    def first_token_id(self, control: int) -> int | None:  # noqa: ARG002
        return None

    @contextmanager
    def applied(self, token_controls: Tensor) -> Iterator[None]:
        self._routing.route(token_controls)
        try:
            yield
        finally:
            self._routing.clear()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{where}": parameter.detach().cpu().clone()
            for k, name in enumerate(self.names)
            for where, parameter in self._learned(k)
        }

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for k, name in enumerate(self.names):
                for where, parameter in self._learned(k):
                    parameter.copy_(state[f"{name}/{where}"])

    def _learned(self, control: int) -> Iterator[tuple[str, nn.Parameter]]:
        for path, layer in self._layers.items():
            yield path, layer.b[control]
            if not layer.shares_a:
                yield f"{path}.a", layer.a[control]

    def centre(self, around: Sequence[int]) -> None:
        if not self._config.share_a or not around:
            return
        with torch.no_grad():
            for layer in self._layers.values():
                common = torch.stack([layer.b[control] for control in around]).mean(0)  # (O, r)
                layer.base.weight += (layer.scale * common @ layer.a[0]).to(layer.base.weight.dtype)
                for b in layer.b:
                    b -= common

    def detach(self, model: nn.Module) -> None:
        """Puts the model's own layers back, so that it is saved as it came."""
        for path, layer in self._layers.items():
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.base)

    def save(self, control: int, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does, in float32."""
        from peft import LoraConfig as PeftLoraConfig

        folder.mkdir(parents=True)
        PeftLoraConfig(
            r=self._config.rank,
            lora_alpha=self._config.alpha,
            target_modules=sorted(self.describe().target_modules),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            inference_mode=True,
        ).save_pretrained(str(folder))
        # Layers that read one input share their A's memory; safetensors wants each on its own.
        save_file({name: tensor.clone() for name, tensor in self._tensors(control).items()}, folder / WEIGHTS)

    def load(self, control: int, folder: Path) -> None:
        """Takes over a saved adapter: its B's, and its A's where they are this control's own.

        Raises TrainingError where its layers, shapes or shared A are not these.
        """
        try:
            saved = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"start_from: {folder / WEIGHTS} cannot be read: {error}") from None
        own = self._tensors(control)
        if odd := sorted(saved.keys() ^ own.keys()):
            raise TrainingError(f"start_from: {folder} and `controls` differ in {odd[0]} ({len(odd)} tensors in all)")
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != saved[name].shape:
                    raise TrainingError(
                        f"start_from: {name} is {tuple(saved[name].shape)} in {folder}; `controls` makes it "
                        f"{tuple(tensor.shape)}"
                    )
                if ".lora_A." in name and self._config.share_a and not torch.equal(tensor.cpu(), saved[name]):
                    raise TrainingError(
                        f"start_from: {folder} has another A in {name}; give the `seed` it was made with"
                    )
                tensor.copy_(saved[name])

    def _tensors(self, control: int) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT's names; they are this control's own memory."""
        tensors = {}
        for path, layer in self._layers.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = layer.a_of(control).detach()
            tensors[f"base_model.model.{path}.lora_B.weight"] = layer.b[control].detach()
        return tensors

    def describe(self) -> LoraControls:
        suffixes = sorted({path.rpartition(".")[2] for path in self._layers})
        return LoraControls(
            rank=self._config.rank,
            alpha=self._config.alpha,
            target_modules=tuple(suffixes),
            shared_a=self._config.share_a,
        )


def _laid_out_as(x: Tensor, mask: Tensor) -> Tensor:
    """The mask, (B, T | 1, K', 1), for x (B, T, I); for x (B T, I), as blocks with experts lay it, (B T, K', 1)."""
    if x.dim() > 2:
        return mask
    return mask.expand(-1, len(x) // len(mask), -1, -1).flatten(0, 1)


def make_a(path: str, rank: int, num_inputs: int, seed: int | str) -> Tensor:
    """The first A of a layer, (r, I): uniform in +-1/sqrt(I), PEFT's own start, drawn by seed and place.

    Layers that read the same input (q, k, v; gate, up) get the same one.
    """
    place = hashlib.sha256(f"{seed}/{_group(path)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(place[:7], "big"))
    bound = num_inputs**-0.5
    return torch.empty(rank, num_inputs).uniform_(-bound, bound, generator=generator)


def _group(path: str) -> str:
    """What layers of one input have in common: their parent's path and the first of their names."""
    parent, _, last = path.rpartition(".")
    return f"{parent}.{next((sorted(names)[0] for names in SAME_INPUT if last in names), last)}"
