"""The pages on training are true: every fragment is a valid part of a configuration, figures are the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from meet_training.config import TrainConfig
from meet_training.controls_config import PEAK_LEARNING_RATES
from meet_training.stages_config import MODEL_LEARNING_RATES, SpeedConfig, Stage2Config

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "TRAINING.md").read_text()
PAGES = PAGE + (DOCS / "TRAINING_ON_SEVERAL_GPUS.md").read_text()
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", PAGES, flags=re.S)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_is_a_valid_part_of_a_configuration(fragment: str) -> None:
    whole = {
        "name": "page",
        "base": "smollm2-135m",
        "output": "bundles/page",
        "data": [{"path": "data.jsonl"}],
        "preferences": {"concise": {"axis": "length"}, "detailed": {"axis": "length"}},
    }
    config = TrainConfig.model_validate(whole | yaml.safe_load(fragment))
    assert config.resolved().stage1.learning_rate


def test_the_page_names_the_defaults() -> None:
    assert PEAK_LEARNING_RATES == {"lora": (2e-3, 1e-3), "soft_prompt": (3e-2, 1e-3)}
    assert MODEL_LEARNING_RATES == {"whole": 3e-5, "lora": 3e-4}
    assert (
        "2e-3 for LoRA and 3e-2 for soft prompts in stage 1; 1e-3 for\ncontrols, 3e-5 for the whole model and 3e-4"
        in PAGE
    )
    speed = yaml.safe_load(next(f for f in FRAGMENTS if "loss_chunk" in f))["speed"]
    assert SpeedConfig(**{**speed, "attention": None}) == SpeedConfig()
    assert (Stage2Config().model_rank, Stage2Config().model_alpha) == (32, 64)
