"""Trackers, read back from what they wrote: TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meet_training import trackers as trackers_module
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.errors import TrainingError
from meet_training.run import train
from meet_training.stages.optimise import TrainProgress


@pytest.fixture
def make_config(make_config: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """Told to TensorBoard, in few steps."""
    stages = {"stage1": {"epochs": 1, "batch_size": 2, "learning_rate": 0.02}}
    stages |= {"stage2": {"epochs": 1, "batch_size": 3, "learning_rate": 0.001}}
    return lambda **more: make_config(**{"device": "cpu", "trackers": ["tensorboard"]} | stages | more)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, progress: TrainProgress) -> None:
        if progress.overall_step == self._step:
            raise Killed


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: tag -> step and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_loss_rate_and_speed_of_every_control_and_stage(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    told: list[TrainProgress] = []

    class Listening(Callback):
        def on_step(self, progress: TrainProgress) -> None:
            told.append(progress)

    train(make_config(), callbacks=[Listening()])
    (folder,) = (tmp_path / "bundle.logs").iterdir()
    found = scalars(folder)
    assert [progress.overall_step for progress in told] == [1, 2, 3, 4, 5]
    for stage, steps in (("stage1", [1, 2, 3]), ("stage2", [4, 5])):
        for label in ("short", "long"):
            losses = [p.losses[label] for p in told if p.stage == stage]
            assert found[f"{stage}/loss/{label}"] == [(s, pytest.approx(v)) for s, v in zip(steps, losses, strict=True)]
            assert [step for step, _ in found[f"{stage}/learning_rate/{label}"]] == steps
        assert all(value > 0 for _, value in found[f"{stage}/tokens_per_s"])
    assert [value for _, value in found["stage1/learning_rate/short"]] == pytest.approx([0.02, 0.02, 0.01])
    assert found["stage2/learning_rate/model"][0] == (4, pytest.approx(0.001))


def test_a_resumed_run_goes_on_in_the_same_curves(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config(checkpoint_every_s=0, log_folder=tmp_path / "logs")
    with pytest.raises(Killed):
        train(config, callbacks=[KillAt(4)])
    train(config)
    (folder,) = (tmp_path / "logs").iterdir()
    found = scalars(folder)
    assert [step for step, _ in found["stage1/loss/short"]] == [1, 2, 3]
    assert [step for step, _ in found["stage2/loss/short"]] == [4, 5]


def test_steps_told_beyond_the_last_checkpoint_are_told_once(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(checkpoint_every_s=3600)
    with pytest.raises(Killed):
        train(config, callbacks=[KillAt(4)])
    train(config)
    (folder,) = (tmp_path / "bundle.logs").iterdir()
    assert [step for step, _ in scalars(folder)["stage1/loss/short"]] == [1, 2, 3]


def test_a_missing_package_is_named_before_any_work(
    make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"trackers: 'wandb' needs the package wandb.*pip install wandb"):
        train(make_config(trackers=["wandb"]))
    with pytest.raises(TrainingError, match=r"'tensorboard' needs .*pip install 'meet\[trackers\]'"):
        train(make_config())
    assert not list(tmp_path.glob("bundle*"))
