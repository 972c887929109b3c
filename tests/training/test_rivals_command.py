"""`meet compare` from a file to a table and JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from meet_cli.commands.compare import compare
from meet_cli.main import run

from .rivals_data import fields


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> Path:
    content = fields(tiny_base, tmp_path)
    content["data"] = [{"path": "paired.jsonl"}]  # relative to the configuration
    content["test"]["neutral"] = "neutral.jsonl"
    content["rivals"] = ["prompting", "stage1_only"]
    content["beside"] = "stage1_only"
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content, default=str))))
    return path


def test_a_table_and_the_same_as_json(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert run(compare, [str(config), "--only", "prompting", "--json", str(figures)]) == 0
    told = capsys.readouterr()
    assert "not complete yet: stage1_only" in told.out
    assert "prompting x1, seed 0: replies: 10/10" in told.err
    assert run(compare, [str(config), "--json", str(figures)]) == 0
    told = capsys.readouterr()
    assert "1 results added" in told.err
    assert "stage1_only (1)" in told.out
    data: dict[str, Any] = json.loads(figures.read_text())
    assert [rival["name"] for rival in data["rivals"]] == ["prompting", "stage1_only"]
    assert data["missing"] == []
    assert data["rivals"][0]["beside"]["stage1_only"]["holds"]["standing"] in ("ahead", "behind", "not told apart")
    assert run(compare, [str(config), "--no-run"]) == 0
    assert "results added" not in capsys.readouterr().err


def test_a_field_is_set_on_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(compare, [str(config), "--budget.pairs=100"]) == 2
    assert "budget.pairs: 100, but the data has 7 prompts left" in capsys.readouterr().err


def test_mistakes_are_told_in_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(compare, [str(config), "--only", "bert"]) == 2
    assert "rivals: 'bert' is none; they are prompting, sft, text_token" in capsys.readouterr().err
    assert run(compare, [str(config), "--budget.stage1_epochs=3"]) == 2
    assert "budget.stage1_epochs: Input should be a multiple of 2, not 3" in capsys.readouterr().err
    assert run(compare, [str(config), "--axes.length.attribute=charm"]) == 2
    assert "axes.length: 'charm' is not measured; the attributes are" in capsys.readouterr().err
