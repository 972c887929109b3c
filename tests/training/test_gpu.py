"""Both stages on a CUDA device. `make test-gpu` runs this."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meet_bundle import open_bundle
from meet_training.config import TrainConfig
from meet_training.run import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_stages_learn_on_cuda(tiny_base: Path, preference_file: Path, tmp_path: Path, precision: str) -> None:
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
            "precision": precision,
            "stage1": {"epochs": 8, "batch_size": 6, "learning_rate": 0.02},
            "stage2": {"epochs": 4, "batch_size": 6, "learning_rate": 0.001},
        }
    )
    bundle = train(config)
    assert open_bundle(bundle.path).manifest.made["final_loss"]["stage2"]["short"] < 5.0
