"""What a run will write is estimated before it begins, and told where the disk has no room for it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from meet_training.base_model import check_causal_model, shape_of
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.run import train
from meet_training.stages.disk_space import lacking_space, needed_bytes

MakeConfig = Callable[..., TrainConfig]


class Stopped(Exception):
    """Ends a run where it has told what it was to tell."""


class Stopping(Callback):
    def on_warning(self, what: str) -> None:
        raise Stopped(what)


@pytest.mark.parametrize("controls", [{}, {"share_a": False}, {"kind": "soft_prompt", "num_virtual_tokens": 8}])
@pytest.mark.parametrize("stage2", [{"epochs": 0}, {"epochs": 1, "model": "lora"}, {"epochs": 1}])
def test_a_run_writes_no_more_than_that_and_not_much_less(
    make_config: MakeConfig, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, controls: Any, stage2: Any
) -> None:
    config = make_config(controls=controls, stage2=stage2, checkpoint_every_s=0)
    needed = needed_bytes(config, shape_of(tiny_base, check_causal_model(tiny_base)), torch.float32)
    checkpoints = [0]

    class Measuring(Callback):
        def on_step(self, progress: Any) -> None:
            checkpoints.append(next(config.output.parent.glob(".bundle.run/checkpoint.pt")).stat().st_size)

    bundle = train(config, callbacks=[Measuring()])
    num_bundle = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    beside = 400_000  # tokenizer, report, and what files hold beside their numbers
    most = max(checkpoints) + max(*checkpoints, num_bundle)
    assert needed + beside >= most
    assert needed <= 2 * most


def test_a_disk_that_is_too_small_is_told_with_folder_and_both_sizes(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path
) -> None:
    """A base that no disk holds, of which nothing but its configuration is ever looked at."""
    folder = shutil.copytree(tiny_base, tmp_path / "huge")
    (folder / "model.safetensors").unlink()
    size = {"hidden_size": 2**20, "intermediate_size": 2**24, "head_dim": 2**18}
    AutoConfig.from_pretrained(tiny_base, **size).save_pretrained(folder)
    config = make_config(base=str(folder), output=tmp_path / "not" / "there" / "yet" / "bundle")
    with pytest.raises(Stopped) as said:
        train(config, callbacks=[Stopping()])
    place = re.escape(str(config.output.parent))
    assert re.fullmatch(
        rf"{place} has [\d.]+ GB free, and checkpoints and the bundle may need [\d.]{{6,}} GB there", str(said.value)
    )
    assert not (tmp_path / "not" / "there" / "yet" / "bundle").exists()


def test_what_is_there_already_is_not_asked_for_again(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert lacking_space(tmp_path, free // 2) is None
    assert lacking_space(tmp_path, 4 * free) is not None
    assert lacking_space(tmp_path, 4 * free, written=4 * free) is None
