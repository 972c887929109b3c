"""One stage's steps, from its checkpoint on, and what is kept of them. Knows not which stage it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from meet_training.callbacks import Callback
from meet_training.controls.control import ControlSet
from meet_training.controls.model_lora import ModelLora
from meet_training.data.batches import Schedule
from meet_training.stages.checkpoint import CheckpointFolder
from meet_training.stages.optimise import Curve, LoopConfig, ParameterGroup, losses_again, optimise
from meet_training.stages.sharding import load_whole, whole
from meet_training.stages.tune_controls import check_that_all_are_numbers, check_that_all_learned


@dataclass(slots=True)
class Record:
    """What is kept of a run, by stage: learning curves, and seconds spent."""

    curves: dict[str, Curve] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        return {"losses": {stage: curve.losses for stage, curve in self.curves.items()}, "seconds": self.seconds}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Record:
        return cls({stage: Curve(losses) for stage, losses in state["losses"].items()}, state["seconds"])


@dataclass(frozen=True, slots=True)
class StageParts:
    """What a stage works on. `learning`: controls that are to be seen to move; `tuned`: the language model or the
    LoRA in its place, where it is tuned."""

    model: nn.Module
    controls: ControlSet
    schedule: Schedule
    groups: list[ParameterGroup]
    learning: Sequence[str] = ()
    tuned: nn.Module | ModelLora | None = None

    def state(self, *, keep: bool = True, optimisers: bool = True) -> dict[str, Any]:
        """All of it, put together where the model is sharded: then every process must call this, and only those
        that `keep` it have it afterwards. Without the optimisers' part it is a third as large."""
        tuned = self.tuned
        state = {
            "controls": self.controls.state(),
            "model": tuned.state_dict() if isinstance(tuned, nn.Module) else tuned.state() if tuned else None,
            "groups": [group.state() for group in self.groups] if optimisers else [],
        }
        put_together: dict[str, Any] = whole(state, keep=keep)
        return put_together

    def load_state(self, state: dict[str, Any]) -> None:
        self.controls.load_state(state["controls"])
        if isinstance(self.tuned, nn.Module):
            load_whole(self.tuned, state["model"])
        elif self.tuned is not None:
            self.tuned.load_state(state["model"])
        for group, own in zip(self.groups, state["groups"], strict=True):
            group.load_state(own)


def run_stage(
    parts: StageParts,
    config: LoopConfig,
    record: Record,
    checkpoints: CheckpointFolder,
    callbacks: Callback,
    saved: dict[str, Any] | None,
) -> None:
    """Runs the steps that `saved`, a checkpoint of this stage, has not done yet; adds to `record`.

    Raises TrainingError where a control that is to learn has not moved in the end, or a loss is no number.
    """
    name, curve = config.stage, record.curves.setdefault(config.stage, Curve())
    before = sum(other.num_steps for stage, other in record.curves.items() if stage != name)
    spent, since = record.seconds.get(name, 0.0), time.monotonic()
    started_from = saved["started_from"] if saved else parts.controls.state()
    if saved:
        parts.load_state(saved["parts"])

    def save(step: int) -> None:
        record.seconds[name] = spent + time.monotonic() - since
        main, due = config.machine.is_main, checkpoints.is_due()
        # A sharded model is put together by all processes, when the clock of the main one says so.
        if config.machine.of_main(due) if config.sharded else main and due:
            state = {"stage": name, "step": step, "started_from": started_from, "record": record.state()}
            state["parts"] = parts.state(keep=main)
            if main:
                checkpoints.save(state)

    optimise(
        parts.model,
        parts.controls,
        parts.schedule,
        parts.groups,
        config,
        curve=curve,
        start=saved["step"] if saved else 0,
        after_step=save,
        on_progress=lambda progress: callbacks.on_step(replace(progress, overall_step=before + progress.step)),
    )
    again = losses_again(parts.model, parts.controls, parts.schedule.step(0), config)
    check_that_all_are_numbers(name, again)  # no step comes that would meet what the last one did
    if parts.learning:
        moved = {label: (curve.losses[label][0], again[label]) for label in parts.learning}
        check_that_all_learned(parts.learning, started_from, parts.controls.state(), moved)
    record.seconds[name] = spent + time.monotonic() - since
    callbacks.on_stage_end(name, curve)
