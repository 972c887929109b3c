"""What rivals without controls share: the model itself is tuned, by the loop, optimiser and clipping of stage 2."""

from __future__ import annotations

from typing import Any

from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.rival import Point, stages
from meet_training.stages_config import MODEL_LEARNING_RATES


def tuned_whole(config: CompareConfig, point: Point, *, epochs: float, rate: float | None = None) -> dict[str, Any]:
    """Every weight is tuned for so many epochs."""
    return stages(config, point, epochs=(0, epochs), model_rate=rate or MODEL_LEARNING_RATES["whole"])
