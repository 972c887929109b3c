"""Whether what a run will write fits on the disk: its checkpoints and its bundle. Estimates from sizes of layers;
writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from meet_training.config import TrainConfig
from meet_training.controls_config import LoraConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BYTES_IN_CHECKPOINT = 12
"""Of a number that is tuned: itself and the two moments of its optimiser, in float32."""
BYTES_IN_BUNDLE = 4
"""Of a number of a control, float32. A checkpoint has what it started from, too."""


def needed_bytes(config: TrainConfig, model: PreTrainedModel, dtype: torch.dtype) -> int:
    """At most so much is on the disk at once: two checkpoints while one takes the place of the one before, or the last
    one and the bundle. Of `model`, which the bundle has in `dtype`, sizes are looked at alone."""
    num_weights: int = sum(parameter.numel() for parameter in model.parameters())
    num_controls = _num_of_controls(config, model)
    num_tuned = 0
    if config.stage2.epochs:
        num_tuned = num_weights if config.stage2.model == "whole" else _num_of_lora(model, config.stage2.model_rank)
    checkpoint = BYTES_IN_CHECKPOINT * (num_tuned + num_controls) + BYTES_IN_BUNDLE * num_controls
    bundle = int(dtype.itemsize) * num_weights + BYTES_IN_BUNDLE * num_controls
    return checkpoint + max(checkpoint, bundle)


def lacking_space(folder: Path, needed: int, written: int = 0) -> str | None:
    """What is to be said where fewer than `needed` bytes are free for a folder, which may not exist yet; None where
    there are. `written`: bytes of these that are there already."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed - written <= free:
        return None
    return (
        f"{folder.absolute()} has {free / 1e9:.1f} GB free, and checkpoints and the bundle may need "
        f"{(needed - written) / 1e9:.1f} GB there"
    )


def _num_of_controls(config: TrainConfig, model: PreTrainedModel) -> int:
    """Numbers that all controls have. A shared A is counted for each, as each has it in the bundle."""
    kind, num = config.controls, len(config.preferences)
    if isinstance(kind, LoraConfig):
        return num * _num_of_lora(model, kind.rank)
    return num * kind.num_virtual_tokens * int(model.get_input_embeddings().embedding_dim)


def _num_of_lora(model: PreTrainedModel, rank: int) -> int:
    """Of every linear layer, more than is adapted: few beside the model's own, and more is on the safe side."""
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return rank * sum(layer.in_features + layer.out_features for layer in layers)
