"""docs/TUTORIAL.md, word for word in a fresh clone with nothing cached: under 15 minutes, and the preference shows.

`make test-tutorial` prints the seconds of each step; MEET_TUTORIAL_INSTALL=1 runs the page's `make setup` too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_shell import Step, python_path
from tutorial_page import run_page

from meet_training.data.attributes import ATTRIBUTES

FIFTEEN_MINUTES_S = 15 * 60
AGAINST = ("opposite", "uncontrolled", "prompted")


@pytest.fixture
def installed_clone(clone: Path) -> Path:
    """The clone with an installation of it."""
    if os.environ.get("MEET_TUTORIAL_INSTALL"):
        subprocess.run(["make", "--silent", "setup"], cwd=clone, check=True, timeout=1200)
    else:
        (clone / ".venv").symlink_to(sys.prefix)
    return clone


@pytest.fixture
def environment(installed_clone: Path, new_user: dict[str, str]) -> dict[str, str]:
    """That of a new user. The clone's own sources are run, whoever installed the environment."""
    return new_user | {"PYTHONPATH": python_path(installed_clone), "VLLM_LOGGING_LEVEL": "ERROR"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_word_for_word(installed_clone: Path, environment: dict[str, str]) -> None:
    steps, clone = [], installed_clone
    for step in run_page(clone / "docs" / "TUTORIAL.md", clone, environment):
        print(f"{step.seconds:6.1f} s  {step.commands.splitlines()[0]}", flush=True)  # noqa: T201
        steps.append(step)
    total = sum(step.seconds for step in steps)
    print(f"{total:6.1f} s  in all, on {os.cpu_count()} cores", flush=True)  # noqa: T201
    assert total < FIFTEEN_MINUTES_S
    the_preference_shows(clone, steps)


def the_preference_shows(clone: Path, steps: list[Step]) -> None:
    """In what `meet eval` says of prompts that nothing was trained on, and in the replies to the page's last commands.

    Without a control the model lists by itself, so that `plain` is the preference that must differ from it.
    """
    report = json.loads((clone / "bundles" / "help-desk" / "report" / "evaluation.json").read_text())
    held = {row["preference"]: row for row in report["preferences"]}
    for name, row in held.items():
        shares = [f"{against} {row[f'holds_vs_{against}']['share']:.0%}" for against in AGAINST]
        print(f"{name} holds against its {', '.join(shares)}", flush=True)  # noqa: T201
    assert all(row["holds_vs_opposite"]["low"] > 0.5 for row in held.values())
    assert held["plain"]["holds_vs_uncontrolled"]["low"] > 0.5
    asked = next(step.output for step in steps if step.commands.startswith("curl "))
    plain = json.loads(asked)["choices"][0]["message"]["content"]
    items = ATTRIBUTES["list_items"].measure
    assert items(plain) == 0, plain
    assert items(steps[-1].output) >= 3, steps[-1].output
