"""Splits the language model over processes, for one too large for a single device: torch's `fully_shard` (FSDP2).

Used directly rather than through Accelerate: `Accelerator.prepare` wraps one model with one optimiser, and here every
control has its own. The weights of the model are split; controls, and a LoRA in the model's place, are small, are kept
whole in every process, and their gradients are summed by `Machine.add_gradients` like everywhere else.

All of this is collective: every process must come here, and go over the model, equally often.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from meet_training.errors import TrainingError
from meet_training.stages.machine import Machine, is_sharded


def shard(model: Any, kept: Iterable[nn.Parameter], machine: Machine) -> None:
    """Leaves each process its part of the model's weights, on its device; `kept` parameters stay whole.

    Layers are put together one at a time while a pass goes through them. Gradients are summed, not averaged: losses
    are parts of a whole step's means already. Optimisers are to be made after this, which replaces the parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise TrainingError(
            f"speed.sharding: {type(model).__name__} does not say which modules are its layers (_no_split_modules); "
            f"use none"
        )
    whole = set(kept)
    for parameter in whole:
        parameter.data = parameter.data.to(machine.device)
    mesh = init_device_mesh(machine.device.type, (machine.num_processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # What is not in a layer stays together between forward and backward pass: the loss reads the output layer's weight.
    fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    for module in (*layers, model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # a plain sum, which gloo can do too


def whole(tree: Any, *, keep: bool = True) -> Any:
    """Every sharded tensor in nested dictionaries and lists, put together in main memory. Collective.

    Where not `keep`, this process takes part and holds nothing: sharded tensors become None.
    """
    if isinstance(tree, dict):
        return {key: whole(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value, keep=keep) for value in tree]
    if isinstance(tree, Tensor) and is_sharded(tree):
        full: Tensor = tree.full_tensor()  # type: ignore[attr-defined]
        return full.cpu() if keep else None
    return tree


def part_of(tensor: Any, like: Tensor) -> Any:
    """What this process holds of a whole tensor, where `like` is sharded and of that shape; else the tensor itself."""
    if not is_sharded(like) or not isinstance(tensor, Tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split: Any = like
    # Each process has read the whole tensor by itself: nothing need be sent.
    return distribute_tensor(tensor.to(like.device), split.device_mesh, split.placements, src_data_rank=None)


def load_whole(model: nn.Module, state: dict[str, Any]) -> None:
    """Takes over whole tensors, into a model that may be sharded."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(part_of(state[name], tensor))
