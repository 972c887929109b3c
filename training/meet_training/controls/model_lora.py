"""A LoRA of the language model itself, for stage 2 on models too large to fine-tune whole. PEFT's, merged at the end.

It lies under the controls and applies to every row, controlled or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from meet_training.controls.target_layers import target_layers
from meet_training.stages_config import Stage2Config

_NAME = "model"


class ModelLora:
    """PEFT's adapter on every linear layer of a model but its output layer."""

    def __init__(self, model: nn.Module, config: Stage2Config, seed: int) -> None:
        """Injects the adapter into `model`, controls attached or not; all else of the model is to be frozen."""
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(seed)  # PEFT draws A from the global generator
        peft_config = LoraConfig(
            r=config.model_rank, lora_alpha=config.model_alpha, target_modules=list(target_layers(model, "all-linear"))
        )
        inject_adapter_in_model(peft_config, model, _NAME)
        self._layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
        for layer in self._layers.values():
            for factor in (layer.lora_A, layer.lora_B):
                factor[_NAME].float()

    def parameters(self) -> list[nn.Parameter]:
        """What is tuned in place of the model."""
        return [factor[_NAME].weight for layer in self._layers.values() for factor in (layer.lora_A, layer.lora_B)]

    def state(self) -> dict[str, Any]:
        return {str(i): parameter.detach().cpu().clone() for i, parameter in enumerate(self.parameters())}

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(state[str(i)])

    def merge(self, model: nn.Module) -> None:
        """Adds the adapter to the weights and gives the model its own layers back. Controls are detached after that."""
        for path, layer in self._layers.items():
            layer.merge()
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
