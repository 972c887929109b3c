"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, through Accelerate's classes for them. A `Callback`.

Of every step: the loss of each control, the learning rates, the speed. A run that goes on after a kill goes on in the
same curves, at the same step numbers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meet_training.callbacks import Callback
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from meet_bundle import Bundle
    from meet_training.config import TrainConfig
    from meet_training.stages.optimise import TrainProgress

# What each needs beside Accelerate, and how it is installed.
PACKAGES = {
    "tensorboard": ("tensorboard", "pip install 'meet[trackers]'"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow"),
}

RUN_FILE = ".run"
"""In the folder of logs while a run is not at its end: the run's id, by which trackers know it again."""


class Trackers(Callback):
    """Tells the trackers that a configuration names. They are opened at the first step, whose number they need."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises TrainingError where the package of a tracker is missing."""
        for name in config.trackers:
            package, command = PACKAGES[name]
            if find_spec(package) is None:
                raise TrainingError(f"trackers: {name!r} needs the package {package}, which is missing: {command}")
        self._config = config
        self.folder = config.log_folder or config.output.parent / f"{config.output.name}.logs"
        self._trackers: list[Any] | None = None

    def on_step(self, progress: TrainProgress) -> None:
        values: dict[str, float] = {f"loss/{name}": loss for name, loss in progress.losses.items()}
        values |= {f"learning_rate/{name}": value for name, value in progress.learning_rates.items()}
        values["tokens_per_s"] = progress.tokens_per_s
        if self._trackers is None:
            self._trackers = self._open(progress.overall_step)
        for tracker in self._trackers:
            tracker.log(
                {f"{progress.stage}/{name}": value for name, value in values.items()}, step=progress.overall_step
            )

    def on_bundle(self, bundle: Bundle) -> None:  # noqa: ARG002
        for tracker in self._trackers or ():
            tracker.finish()
        (self.folder / RUN_FILE).unlink(missing_ok=True)

    def _open(self, first_step: int) -> list[Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / RUN_FILE
        if not run_file.is_file():
            run_file.write_text(uuid.uuid4().hex[:12])
        trackers = [
            OPENERS[name](self._config, self.folder, run_file.read_text(), first_step) for name in self._config.trackers
        ]
        for tracker in trackers:
            tracker.start()
        return trackers


def _tensorboard(config: TrainConfig, folder: Path, run: str, first_step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # A killed run had told steps beyond its checkpoint, which are now told again: the old ones are struck out.
    return TensorBoardTracker(f"{config.name}-{run}", folder, purge_step=first_step)


def _wandb(config: TrainConfig, folder: Path, run: str, first_step: int) -> Any:  # noqa: ARG001
    from accelerate.tracking import WandBTracker

    return WandBTracker(config.name, id=run, resume="allow", dir=str(folder), config=config.model_dump(mode="json"))


def _mlflow(config: TrainConfig, folder: Path, run: str, first_step: int) -> Any:  # noqa: ARG001
    from accelerate.tracking import MLflowTracker

    # MLflow gives ids itself, so a run that goes on is a second one there, of the same name.
    return MLflowTracker(config.name, run_name=run)


OPENERS: dict[str, Callable[[TrainConfig, Path, str, int], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
