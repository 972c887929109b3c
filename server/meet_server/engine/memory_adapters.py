"""Mixes of controls inside the engine's worker processes: made from the controls they hold, with no files.

vLLM loads an adapter from a folder. Its worker's loader is wrapped here: a path that `mix_path` made is answered with a
LoRAModel computed from controls that were loaded before, so that a new mix costs one message of a few numbers and, of
the tensors, what is summed. Every control is checked when it is loaded, and read once: vLLM, which may let go of it for
want of room, loads it again in the middle of a step. So neither a control nor a mix of some can fail the engine then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights
from vllm.lora.worker_manager import WorkerLoRAManager

from meet_server.engine.mix_path import parse_mix_path
from meet_server.preferences.mix import weighted_sum
from meet_server.registry.live import FIRST_ID

Parts = Sequence[tuple[LoRAModel, float]]


def install() -> None:
    """Wraps the loader of vLLM's workers, once."""
    if not hasattr(WorkerLoRAManager._load_adapter, "__wrapped__"):
        WorkerLoRAManager._load_adapter = loading(WorkerLoRAManager._load_adapter)
        WorkerLoRAManager.remove_adapter = removing(WorkerLoRAManager.remove_adapter)


def loading(load: Callable[..., LoRAModel]) -> Callable[..., LoRAModel]:
    """`WorkerLoRAManager._load_adapter` that also knows mixes, and keeps MEET's controls for them and for itself."""

    @functools.wraps(load)
    def _load_adapter(manager: Any, request: Any) -> LoRAModel:
        named, controls = parse_mix_path(request.lora_path), _controls(manager)
        if named is None:
            if (kept := controls.get(request.lora_int_id)) is not None:
                return kept  # its files may be others by now, or gone, which would end the engine
            model = load(manager, request)
            check_finite(model)
            if request.lora_int_id >= FIRST_ID:
                controls[request.lora_int_id] = model
            return model
        if missing := [str(control_id) for control_id, _ in named if control_id not in controls]:
            raise ValueError(f"{request.lora_name} mixes controls that are not loaded: {', '.join(missing)}")
        parts = [(controls[control_id], strength) for control_id, strength in named]
        # A manager that can apply a mix without its tensors (`resident_lora`) says so.
        unsummed = getattr(manager._adapter_manager, "unsummed_mix", None)
        model = unsummed(request.lora_int_id, parts) if unsummed is not None else None
        if model is None:
            model = mixed(request.lora_int_id, parts, manager.lora_config.max_lora_rank)
            check_finite(model)
        return model

    return _load_adapter


def removing(remove: Callable[..., bool]) -> Callable[..., bool]:
    """`WorkerLoRAManager.remove_adapter` that lets go of what was kept for mixes."""

    @functools.wraps(remove)
    def remove_adapter(manager: Any, adapter_id: int) -> bool:
        _controls(manager).pop(adapter_id, None)
        return remove(manager, adapter_id)

    return remove_adapter


def mixed(lora_id: int, parts: Parts, max_rank: int) -> LoRAModel:
    """The adapter that is sum_i w_i B_i A_i in every layer. `parts` are adapters that vLLM has packed and scaled.

    Raises ValueError where factors must be stacked and their rank exceeds what the engine has room for.
    """
    rank = 0
    layers: dict[str, LoRALayerWeights] = {}
    for name in dict.fromkeys(name for model, _ in parts for name in model.loras):
        present = [(model.loras[name], strength) for model, strength in parts if name in model.loras]
        layer = _mixed_layer(name, present)
        layers[name] = layer
        rank = max(rank, layer.rank)
    if rank > max_rank:
        raise ValueError(f"a mix of {len(parts)} controls without a shared A has rank {rank}; {max_rank} is allowed")
    return LoRAModel(lora_id, rank, layers)


def _mixed_layer(name: str, parts: Sequence[tuple[LoRALayerWeights, float]]) -> LoRALayerWeights:
    if not parts[0][0].is_packed:
        a, b = factors([(layer.lora_a, layer.lora_b, strength) for layer, strength in parts])
        return LoRALayerWeights(name, a.shape[0], a.shape[0], a, b, scaling=1)
    # Layers that vLLM fuses (query, key and value) hold a list with a place for each.
    pairs: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []
    for index in range(len(parts[0][0].lora_a)):
        slices = [(layer.lora_a[index], layer.lora_b[index], strength) for layer, strength in parts]
        there = [each for each in slices if each[0] is not None]
        pairs.append(factors(there) if there else (None, None))
    rank = max(a.shape[0] for a, _ in pairs if a is not None)
    num = len(pairs)
    return PackedLoRALayerWeights(
        name, rank, [rank] * num, [a for a, _ in pairs], [b for _, b in pairs], scaling=[1] * num
    )


def factors(parts: Sequence[tuple[torch.Tensor, torch.Tensor, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A (R, in) and B (out, R) with B A = sum_i w_i B_i A_i, for A_i (r, in), B_i (out, r), w_i.

    R is r where all A_i are one, else the sum of ranks. Summed in float32, rounded once.
    """
    first_a, first_b, _ = parts[0]
    strengths = [strength for _, _, strength in parts]
    if all(a is first_a or torch.equal(a, first_a) for a, _, _ in parts):
        total = weighted_sum(strengths, [b.float() for _, b, _ in parts])
        return first_a, total.to(first_b.dtype)
    scaled = [(strength * b.float()).to(b.dtype) for _, b, strength in parts]
    return torch.cat([a for a, _, _ in parts]), torch.cat(scaled, dim=1)


def check_finite(model: LoRAModel) -> None:
    """Raises ValueError naming the first layer with a number that is not finite."""
    for name, layer in model.loras.items():
        for tensors in (layer.lora_a, layer.lora_b):
            for tensor in tensors if isinstance(tensors, list) else (tensors,):
                if tensor is not None and not torch.isfinite(tensor).all():
                    raise ValueError(f"layer {name} has weights that are not finite")


def _controls(manager: Any) -> dict[int, LoRAModel]:
    """MEET's own controls that this worker holds, by id, whatever vLLM's cache has let go of."""
    kept: dict[int, LoRAModel] = manager.__dict__.setdefault("meet_controls", {})
    return kept
