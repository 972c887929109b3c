"""kill -9 at random moments of a whole run, start-up and writing included: what is there afterwards is whole, and the
run that goes on ends in the bundle of the one that was never killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from meet_bundle import open_bundle
from meet_training.callbacks import Callback
from meet_training.config import load_config
from meet_training.errors import TrainingError
from meet_training.run import train
from meet_training.stages.optimise import TrainProgress

from .fork_server import ForkServer

CHECKPOINT_EVERY_STEP = 0


@pytest.fixture
def write_config(tiny_base: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Writes a configuration for an output: both stages, and replies of the base itself in two batches."""
    data = tmp_path / "data.jsonl"
    words = [f"{word}{number}" for word in ("rain", "snow", "wind", "fog", "hail") for number in range(4)]
    rows = [
        {"prompt": f"What is {word}?", "reply": reply, "preference": preference}
        for word in words
        for preference, reply in (("short", f"{word}."), ("long", f"It is {word}, as one says of {word}."))
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(output: Path) -> Path:
        fields: dict[str, Any] = {
            "name": "tiny",
            "base": str(tiny_base),
            "output": str(output),
            "data": [{"path": str(data)}],
            "preferences": {"short": {"axis": "length"}, "long": {"axis": "length"}},
            "precision": "float32",
            "device": "cpu",
            "stage1": {"epochs": 2, "batch_size": 5, "learning_rate": 0.01},
            "stage2": {"epochs": 1, "batch_size": 5, "learning_rate": 0.001, "uncontrolled_share": 0.5},
            "uncontrolled": {"max_new_tokens": 60},
            "checkpoint_every_s": CHECKPOINT_EVERY_STEP,
        }
        path = tmp_path / f"{output.parent.name}.yaml"
        path.write_text(yaml.safe_dump(fields))
        return path

    return write


@pytest.mark.parametrize(
    "num_kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["3", "20"]
)
def test_a_run_killed_at_any_moment_and_resumed_ends_as_if_never_killed(
    fork_server: ForkServer, write_config: Callable[[Path], Path], tmp_path: Path, num_kills: int
) -> None:
    undisturbed = tmp_path / "undisturbed" / "bundle"
    config = write_config(undisturbed)
    began = time.monotonic()
    assert fork_server.wait(fork_server.start(["train", str(config)], tmp_path / "log")) == 0
    seconds = time.monotonic() - began
    expected = (undisturbed / "meet.json").read_bytes()
    moments = random.Random(0)
    met = Counter[str]()
    for number in range(num_kills):
        output = tmp_path / f"killed{number}" / "bundle"
        config = write_config(output)
        kill_at(fork_server, config, output, moments, number / num_kills, 1 / num_kills, seconds)
        assert_nothing_is_half(output)
        met[what_stood(output)] += 1
        if not output.exists():
            assert fork_server.wait(fork_server.start(["train", str(config)], tmp_path / "log")) == 0
            assert list(output.parent.iterdir()) == [output]
        assert open_bundle(output).path == output
        assert (output / "meet.json").read_bytes() == expected, f"kill {number}"
    print(dict(met))  # noqa: T201 - `pytest -s` shows what the kills met
    if num_kills == 20:
        assert {"no checkpoint", "stage1", "stage2", "writing"} <= met.keys()


def test_a_second_run_for_the_same_output_is_refused_while_the_first_one_trains(
    write_config: Callable[[Path], Path], tmp_path: Path
) -> None:
    output = tmp_path / "once" / "bundle"
    config = load_config(write_config(output))
    refused: list[str] = []

    class Second(Callback):
        def on_step(self, progress: TrainProgress) -> None:
            if not refused:
                with pytest.raises(TrainingError, match=r"^output: another run is training .*bundle now; wait") as told:
                    train(config)
                refused.append(str(told.value))

    train(config, callbacks=[Second()])
    assert refused
    assert list(output.parent.iterdir()) == [output]


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    write_config: Callable[[Path], Path], tmp_path: Path
) -> None:
    output = tmp_path / "failed" / "bundle"
    config = load_config(write_config(output), ["stage2.uncontrolled_share=0", "checkpoint_every_s=300"])

    class Failing(Callback):
        def on_step(self, progress: TrainProgress) -> None:
            raise TrainingError("enough")

    with pytest.raises(TrainingError, match="enough"):
        train(config, callbacks=[Failing()])
    assert list(output.parent.iterdir()) == []


def kill_at(
    server: ForkServer, config: Path, output: Path, moments: random.Random, start: float, width: float, seconds: float
) -> None:
    """Starts a run of about `seconds` and kills it at a random moment of the part of it from `start` on."""
    for attempt in range(10):
        # A run that was faster than the one that was timed is tried again, and killed earlier.
        delay = seconds * (start + width * moments.random()) * 0.9**attempt
        pid = server.start(["train", str(config)], output.parent.parent / "log")
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        if server.wait(pid) == -signal.SIGKILL:
            return
        shutil.rmtree(output.parent)
    pytest.fail("no run could be killed before its end")


def what_stood(output: Path) -> str:
    """How far a killed run was."""
    if output.exists():
        return "written"
    if list(output.parent.glob(f".{output.name}.partial-*")):
        return "writing"
    checkpoint = output.parent / f".{output.name}.run" / "checkpoint.pt"
    return str(torch.load(checkpoint, weights_only=True)["state"]["stage"]) if checkpoint.is_file() else "no checkpoint"


def assert_nothing_is_half(output: Path) -> None:
    """Whatever has a manifest, at the output or beside it, is a whole bundle."""
    for manifest in output.parent.rglob("meet.json"):
        open_bundle(manifest.parent)
