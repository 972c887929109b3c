"""Both stages on a CUDA device. `make test-gpu` runs this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from meet_bundle import open_bundle
from meet_training.config import TrainConfig
from meet_training.run import train

pytestmark = pytest.mark.gpu


CONTROLS = [
    {"kind": "lora"},
    {"kind": "lora", "share_a": False},
    {"kind": "soft_prompt", "num_virtual_tokens": 4},
    {"kind": "soft_prompt", "num_virtual_tokens": 4, "placement": "before_prompt"},
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_both_stages_learn_on_cuda(
    tiny_base: Path, preference_file: Path, tmp_path: Path, controls: dict[str, Any], precision: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    config = TrainConfig.model_validate(
        {
            "name": "tiny",
            "base": str(tiny_base),
            "output": tmp_path / "bundle",
            "data": [{"path": preference_file}],
            "preferences": {"short": {"axis": "length", "opposite": "long"}, "long": {"axis": "length"}},
            "device": "cuda",
            "controls": controls,
            "precision": precision,
            "stage1": {"epochs": 8, "batch_size": 6, "learning_rate": 0.02},
            "stage2": {"epochs": 4, "batch_size": 6, "learning_rate": 0.001},
        }
    )
    bundle = train(config)
    assert open_bundle(bundle.path).manifest.made["final_loss"]["stage2"]["short"] < 5.0


@pytest.mark.parametrize("stage2", [{"model": "lora"}, {"controls": "frozen"}])
def test_packed_and_checkpointed_on_cuda(
    tiny_base: Path, preference_file: Path, tmp_path: Path, stage2: dict[str, Any]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    config = TrainConfig.model_validate(
        {
            "name": "tiny",
            "base": str(tiny_base),
            "output": tmp_path / "bundle",
            "data": [{"path": preference_file}],
            "preferences": {"short": {"axis": "length", "opposite": "long"}, "long": {"axis": "length"}},
            "device": "cuda",
            "objective": {"kind": "preference"},
            "stage1": {"epochs": 2, "uncontrolled_share": 0.2},
            "stage2": {"epochs": 1, "uncontrolled_share": 0.2} | stage2,
            "uncontrolled": {"max_new_tokens": 256},
            "speed": {"packing": "always", "gradient_checkpointing": True},
        }
    )
    open_bundle(train(config).path)
