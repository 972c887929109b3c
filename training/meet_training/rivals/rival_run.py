"""Trains one model of a rival by MEET's own run: the same loop, schedule, optimisers and checkpoints.

What differs is what is shown to the model (its rendering) and whether there are controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from meet_training.callbacks import Callback
from meet_training.config import TrainConfig, describe
from meet_training.data.example import Example
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.rivals.compare_config import CompareConfig
from meet_training.rivals.no_controls import NoControls
from meet_training.rivals.rival import Job, Rival
from meet_training.stages_config import Stage1Config, Stage2Config
from meet_training.two_stages import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from meet_training.controls.control import ControlSet


class RivalRun(Run):
    """A run whose examples have both replies of their pair until the rival's rendering takes what it needs."""

    def __init__(
        self,
        job: Job,
        config: TrainConfig,
        folder: Path,
        examples: dict[str, list[Example]],
        callbacks: Callback | None = None,
    ) -> None:
        self._job = job
        self._pairs = {preference: examples[preference] for preference in job.preferences}
        super().__init__(config, folder, self._pairs, callbacks)

    def render(self, examples: dict[str, list[Example]]) -> dict[str, list[Rendered]]:  # noqa: ARG002
        # The objective took the pairs out of `examples` where it does not look at them; a rendering may.
        pairs = self._rendered(self._pairs)
        return self._job.rendering.training(pairs, self.tokenizer)

    def attach(self, model: PreTrainedModel) -> ControlSet:
        return super().attach(model) if self._job.controls else NoControls(tuple(self.rendered))

    @property
    def budget(self) -> tuple[int, int]:
        """Tokens that both stages learn, and all tokens that go over the model for it."""
        stages: list[tuple[str, Stage1Config | Stage2Config]] = [
            ("stage1", self.config.stage1),
            ("stage2", self.config.stage2),
        ]
        schedules = [self.schedule(name, stage) for name, stage in stages if stage.epochs]
        items = [item for each in schedules for number in range(each.num_steps) for item in each.step(number)]
        learned = sum(item.rendered.num_supervised + len(item.rendered.rejected_ids or ()) for item in items)
        return learned, sum(item.num_tokens for item in items)


def check_trainings(config: CompareConfig, rivals: Sequence[Rival]) -> None:
    """Raises TrainingError, naming the rival, where a model of one cannot be trained as the comparison says."""
    for rival in rivals:
        for point in rival.points(config):
            for job in rival.jobs(config, point):
                if job.training is None:
                    continue
                try:
                    train_config(config, job, config.seeds[0], config.output)
                except ValidationError as error:
                    raise TrainingError(f"rivals: {rival.name} {point} cannot be trained: {describe(error)}") from None


def train_config(config: CompareConfig, job: Job, seed: int, output: Path) -> TrainConfig:
    """How one model is trained; `output` is where its checkpoints are kept beside."""
    made = TrainConfig.model_validate(
        {
            "name": "rival",
            "base": config.base,
            "output": output,
            "data": config.data,
            "preferences": config.preferences,
            **(job.training or {}),
            "max_length": config.max_length,
            "tokens_per_pass": config.tokens_per_pass,
            "precision": config.precision,
            "device": config.device,
            "checkpoint_every_s": config.checkpoint_every_s,
            "seed": seed,
        }
    )
    if job.controls:
        return made
    # Behind the check that frozen controls have learned something: here there are none to be tuned.
    return made.model_copy(update={"stage2": made.stage2.model_copy(update={"controls": "frozen"})})
