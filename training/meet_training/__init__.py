"""Trains controls and a MEET model from preference data, and writes the bundle that the server reads.

    from meet_training import load_config, load_controls, mix, train

    bundle = train(load_config("examples/demo/train.yaml"))
    controls = load_controls(bundle)
    mixed = mix([(controls["concise"], 0.7), (controls["bulleted"], 0.5)])

docs/PYTHON.md shows what else there is. Names are looked up when they are first used, so that importing the package
loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meet_training.callbacks import Callback
    from meet_training.config import TrainConfig, load_config
    from meet_training.controls.trained import Control, LoraControl, SoftPromptControl, load_controls, mix
    from meet_training.errors import TrainingError
    from meet_training.run import train
    from meet_training.stages.optimise import TrainProgress

__all__ = [
    "Callback",
    "Control",
    "LoraControl",
    "SoftPromptControl",
    "TrainConfig",
    "TrainProgress",
    "TrainingError",
    "load_config",
    "load_controls",
    "mix",
    "train",
]

_HOMES = {
    "Callback": "callbacks",
    "Control": "controls.trained",
    "LoraControl": "controls.trained",
    "SoftPromptControl": "controls.trained",
    "TrainConfig": "config",
    "TrainProgress": "stages.optimise",
    "TrainingError": "errors",
    "load_config": "config",
    "load_controls": "controls.trained",
    "mix": "controls.trained",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
