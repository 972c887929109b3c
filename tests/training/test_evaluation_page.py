"""docs/EVALUATION.md is true: its fragments are configurations, its names those of the code, its count the plan's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from meet_training.evaluation import subject
from meet_training.evaluation.attributes import ATTRIBUTES
from meet_training.evaluation.bootstrap import NUM_RESAMPLES
from meet_training.evaluation.evaluation_config import FIGURES, EvaluationConfig
from meet_training.evaluation.plan import Plan
from meet_training.evaluation.prompts import Message
from meet_training.evaluation.strength import MORE_BROKEN, WITHIN
from meet_training.evaluation.verdict import MOSTLY_SAME, SAME_TEXT

PAGE = (Path(__file__).parents[2] / "docs" / "EVALUATION.md").read_text()
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_is_a_valid_part_of_a_configuration(fragment: str) -> None:
    assert EvaluationConfig.model_validate(yaml.safe_load(fragment)) != EvaluationConfig()


def test_figures_and_attributes_are_those_there_are() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M) == list(FIGURES)
    named = PAGE.split("Attributes are ")[1].split(".\n")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(ATTRIBUTES)


def test_the_numbers_are_the_codes() -> None:
    assert (SAME_TEXT, MOSTLY_SAME) == (0.9, 0.5)
    assert (EvaluationConfig().few, MORE_BROKEN, WITHIN, NUM_RESAMPLES) == (40, 0.05, 0.01, 2000)
    pairs = {"length": ("concise", "detailed"), "format": ("bulleted", "prose")}
    tested = tuple(
        subject.Tested(name, axis, opposite, f"Be {name}.")
        for axis, (one, other) in pairs.items()
        for name, opposite in ((one, other), (other, one))
    )
    demo = subject.Subject("demo", "demo", "meet", tested, base="base", base_identity="base")
    plan = Plan(demo, EvaluationConfig(), [(Message("user", str(n)),) for n in range(100)])
    assert len(plan.asked()) + len(plan.rival()) == 940
