"""LoRA on CPUs with no slots, inside the engine's worker processes. Knows nothing of MEET.

vLLM copies the adapters of a batch into slots and multiplies by the slot of each token. Here the layers multiply by the
controls that the batch is made of, and what belongs to an adapter is one row of strengths:

    y += ((x @ A) * W) @ B       x (T, in), A (in, r), W (T, U), B (U r, out)

for T tokens and U controls in use. A mix of controls is no adapter of its own but another row of W, so that any number
of mixes costs what their controls cost, and a new one costs nothing. Where all U controls have one A it is applied
once, and once for all slices of a fused layer (query, key, value) that read the same input; otherwise each A by itself.
Both are exact. While no token of a batch has an adapter only the base layer is called.

Where a layer is not a plain linear one (embeddings, output layer, experts, fully sharded), vLLM's slots are used.
When it goes: once vLLM's CPU kernels are as fast, `plugin.register` and this file.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.layers.replicated_linear import ReplicatedLinearWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear

from meet_server.engine.resident_weights import Fused, Packed, Strengths, check_fits, pack

# Combinations of controls whose matrices are kept in each layer. Batches move between few.
MAX_COMBINATIONS = 8

# What vLLM's layers do that are their base layer's product and nothing else, with LoRA and without.
_PLAIN_APPLY = tuple(
    layer.apply for layer in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA, ReplicatedLinearWithLoRA)
)
_PLAIN_FORWARD = tuple(layer.forward for layer in (ColumnParallelLinear, ReplicatedLinear, RowParallelLinear))


class Mixture(LoRAModel):  # type: ignore[misc]
    """A mix as the controls that it is made of; it has no tensors."""

    def __init__(self, lora_id: int, parts: Sequence[tuple[LoRAModel, float]]) -> None:
        super().__init__(lora_id, max(model.rank for model, _ in parts), {})
        self.parts = tuple(part for part in parts if part[1])


class Step:
    """What the running batch asks of every layer."""

    __slots__ = ("combination", "controls", "strengths")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """No token has an adapter."""
        self.controls: tuple[LoRAModel, ...] = ()
        self.combination: tuple[int, ...] = ()
        self.strengths = Strengths(torch.zeros(0, 0))


class ResidentLayer:
    """Stands in for `apply` of one of vLLM's linear layers with LoRA and, in one process, for its `forward`."""

    def __init__(self, name: str, layer: BaseLinearLayerWithLoRA, step: Step) -> None:
        self.name = name
        self._layer = layer
        self._base = layer.base_layer
        self._base_forward = layer.base_layer.forward
        self._step = step
        self._packed: dict[tuple[int, ...], Fused | Packed | None] = {}

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y: torch.Tensor = self._base.quant_method.apply(self._base, x, bias)
        if self._step.controls:
            self.add(y, x)
        return y

    def forward(self, x: torch.Tensor) -> Any:
        """The layer's `forward` where one process has all of it: `apply` comes last there, and may as well come after.

        What vLLM's own reads of its base layer on the way is spared.
        """
        output = self._base_forward(x)
        self.add(output[0] if isinstance(output, tuple) else output, x)
        return output

    def stand_aside(self, aside: bool) -> None:
        """Whether the layer is, until told otherwise, its base layer alone, with nothing in between."""
        if aside:
            self._layer.forward = self._base_forward
        elif self._layer.tp_size == 1:
            self._layer.forward = self.forward
        else:
            vars(self._layer).pop("forward", None)

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """y (..., out) += what the step's adapters make of x (..., in), in place; T tokens in all dimensions before."""
        if y.ndim > 2:  # as models of transformers' own have them
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        combination = self._step.combination
        if combination not in self._packed:
            self._packed[combination] = pack(
                self._layer, [control.loras.get(self.name) for control in self._step.controls]
            )
        if (packed := self._packed[combination]) is not None:
            packed.add(y, x, self._step.strengths)

    def check_fits(self, control: LoRAModel) -> None:
        """Raises ValueError where the control has weights of other shapes for this layer."""
        check_fits(self._layer, self.name, control.loras.get(self.name))

    def forget(self, combination: tuple[int, ...]) -> None:
        """Lets go of the matrices for that combination of controls."""
        self._packed.pop(combination, None)


class ResidentManager(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """vLLM's keeper of adapters, whose linear layers have no slots."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._step = Step()
        self._aside: bool | None = None
        self._resident_layers: list[ResidentLayer] = []
        self._combinations: OrderedDict[tuple[int, ...], tuple[LoRAModel, ...]] = OrderedDict()
        self._last_tokens: tuple[int, ...] | None = None
        self._creating = False
        super().__init__(*args, **kwargs)

    @property
    def lora_slots(self) -> int:
        """One while layers are made, which allocate that many and here use none."""
        return 1 if self._creating else int(super().lora_slots)

    def _create_lora_modules(self) -> None:
        self._creating = True
        super()._create_lora_modules()
        self._creating = False
        if all(_is_plain(module) for module in self.modules.values()):
            for name, module in self.modules.items():
                module.apply = layer = ResidentLayer(name, module, self._step)
                self._resident_layers.append(layer)
            return
        for module in self.modules.values():
            module.create_lora_weights(self.lora_slots, self.lora_config, self.model.config)

    def unsummed_mix(self, lora_id: int, parts: Sequence[tuple[LoRAModel, float]]) -> LoRAModel | None:
        """The mix as rows of strengths, where the layers can apply that."""
        return Mixture(lora_id, parts) if self._resident_layers else None

    def has(self, lora_id: int) -> bool:
        """Whether that adapter is here and needs nothing done, which also counts as a use of it."""
        if not self._resident_layers or lora_id not in self._registered_adapters:
            return False
        self._registered_adapters.touch(lora_id)
        return True

    def activate_adapter(self, lora_id: int) -> bool:
        """Nothing is copied anywhere: the layers read the controls themselves."""
        return False if self._resident_layers else bool(super().activate_adapter(lora_id))

    def _add_adapter(self, lora: LoRAModel) -> None:
        if isinstance(lora, Mixture):
            self._registered_adapters[lora.id] = lora
            return
        super()._add_adapter(lora)
        self._forget(lora.id)
        try:
            for layer in self._resident_layers:
                layer.check_fits(lora)
        except ValueError:
            self._registered_adapters.pop(lora.id, None)
            raise

    def set_adapter_mapping(self, mapping: Any) -> None:
        """Called once per step, with the adapter's id of each token; 0 is none."""
        if not self._resident_layers:
            super().set_adapter_mapping(mapping)
        elif mapping.index_mapping != self._last_tokens:
            self._last_tokens = mapping.index_mapping
            self._plan(np.array(mapping.index_mapping, dtype=np.int64))

    def remove_adapter(self, adapter_id: int) -> bool:
        self._forget(adapter_id)
        return bool(super().remove_adapter(adapter_id))

    def _plan(self, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        ids, rows = np.unique(tokens, return_inverse=True)
        parts = [_parts(self._registered_adapters[lora_id]) if lora_id else () for lora_id in ids.tolist()]
        used = {model.id: model for adapter in parts for model, _ in adapter}
        self._stand_aside(not used)
        if not used:
            self._step.clear()
            return
        combination = self._combination(used)
        column = {control_id: index for index, control_id in enumerate(combination)}
        table = torch.zeros(len(ids), len(combination))
        for row, adapter in enumerate(parts):
            for model, strength in adapter:
                table[row, column[model.id]] = strength
        self._step.combination = combination
        self._step.controls = self._combinations[combination]
        self._step.strengths = Strengths(table[torch.from_numpy(rows)])

    def _stand_aside(self, aside: bool) -> None:
        if aside != self._aside:
            self._aside = aside
            for layer in self._resident_layers:
                layer.stand_aside(aside)

    def _combination(self, used: dict[int, LoRAModel]) -> tuple[int, ...]:
        """The smallest kept combination that has all in use and not far more; a new one where there is none."""
        wide = 2 * len(used) + 2
        fitting = [key for key in self._combinations if len(key) <= wide and used.keys() <= set(key)]
        combination = min(fitting, key=len, default=tuple(sorted(used)))
        if not fitting:
            self._combinations[combination] = tuple(used[control_id] for control_id in combination)
        self._combinations.move_to_end(combination)
        if len(self._combinations) > MAX_COMBINATIONS:
            self._drop(next(iter(self._combinations)))
        return combination

    def _forget(self, control_id: int) -> None:
        for combination in [key for key in self._combinations if control_id in key]:
            self._drop(combination)
        self._last_tokens = None

    def _drop(self, combination: tuple[int, ...]) -> None:
        del self._combinations[combination]
        for layer in self._resident_layers:
            layer.forget(combination)


def _parts(adapter: LoRAModel) -> tuple[tuple[LoRAModel, float], ...]:
    """The controls that an adapter is made of, with their strengths; none of no strength."""
    return adapter.parts if isinstance(adapter, Mixture) else ((adapter, 1.0),)


def _is_plain(module: Any) -> bool:
    """Whether a layer is its base layer's product and nothing else."""
    return (
        isinstance(module, BaseLinearLayerWithLoRA)
        and type(module).apply in _PLAIN_APPLY
        and type(module.base_layer).forward in _PLAIN_FORWARD
    )


def install() -> None:
    """Puts it into vLLM's workers, once."""
    LRUCacheWorkerLoRAManager._manager_cls = ResidentManager
    if not hasattr(LRUCacheWorkerLoRAManager.add_adapter, "__wrapped__"):
        LRUCacheWorkerLoRAManager.add_adapter = adding(LRUCacheWorkerLoRAManager.add_adapter)


def adding(add: Callable[..., bool]) -> Callable[..., bool]:
    """`add_adapter`, which is called in every step for every adapter, without listing all adapters each time."""

    @functools.wraps(add)
    def add_adapter(manager: Any, request: Any) -> bool:
        keeper = manager._adapter_manager
        if not request.load_inplace and isinstance(keeper, ResidentManager) and keeper.has(request.lora_int_id):
            return True
        return add(manager, request)

    return add_adapter
