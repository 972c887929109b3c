"""`meet compare` from a file to a table and JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from meet_cli.commands.compare import compare
from meet_cli.main import run
from meet_training.errors import TrainingError
from meet_training.rivals.rendering import AsItIs
from meet_training.rivals.rival import Job, Rival
from meet_training.rivals.rival_run import check_trainings

from .rivals_data import comparison_config, fields


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--tuning.rate_factors=[1, 0]"], "tuning.rate_factors.1: Input should be greater than 0, not 0"),
        (["--tuning.betas=[-0.1]"], "tuning.betas.0: Input should be greater than 0, not -0.1"),
        (["--seeds=[-1]"], "seeds.0: Input should be greater than or equal to 0, not -1"),
        (["--seeds=[20261130120000]"], "seeds.0: Input should be less than or equal to 8796093022208"),
        (["--seeds=[0, 1, 0]"], "seeds: [0, 1, 0] must all be different"),
        (["--seeds=[1,2"], "override 'seeds=[1,2': its value is not YAML: while parsing a flow sequence"),
        (["--sizes.lora_rank=513"], "sizes.lora_rank: Input should be less than or equal to 512, not 513"),
        (["--sizes.num_virtual_tokens=1025"], "sizes.num_virtual_tokens: Input should be less than or equal to 1024"),
        (
            ["--token_text=A {preference} {x}"],
            "token_text: 'A {preference} {x}' must hold {preference}, and no other field",
        ),
        (["--token_text=A {preference"], "token_text: 'A {preference' must hold {preference}"),
        (["--token_text=A {{preference}}"], "token_text: 'A {{preference}}' must hold {preference}"),
        (["--token_text=A {preference.x}"], "token_text: 'A {preference.x}' must hold {preference}"),
        (["--test.prompts=4"], "neutral.jsonl has 5 rows; it must have 6: 4 to test on (test.prompts) and 2 to choose"),
        (["--data.0.labels={short: brief}"], "data.0.labels names 'brief'; the preferences are long, short"),
        (["--test.data=[{path: x.jsonl, chosen: brief}]"], "test.data.0.chosen names 'brief'; the preferences are"),
    ],
)
def test_what_would_fail_only_in_the_middle_is_told_before_anything_is_trained(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert run(compare, [str(config), *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in line
    assert not (tmp_path / "kept").exists()


def test_one_lora_for_all_may_have_so_large_a_rank(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = (
        "sizes.lora_rank: 257 for each of 2 preferences makes one LoRA of rank 514, and it may have 512; take at most"
    )
    ranked = [str(config), "--sizes.lora_rank=257"]
    assert run(compare, [*ranked, "--rivals=[one_lora]", "--beside=one_lora", "--no-run"]) == 2
    assert message in capsys.readouterr().err
    assert run(compare, [*ranked, "--no-run"]) == 0  # who takes part is as many controls, of a rank that each may have
    assert run(compare, [*ranked, "--only", "one_lora"]) == 2
    assert message in capsys.readouterr().err


def test_one_classifier_judges_one_axis(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(config.read_text())
    more = {"good": "bad", "bad": "good"}
    content["preferences"] |= {
        label: {"axis": "quality", "opposite": opposite, "instruction": "Be it."} for label, opposite in more.items()
    }
    content["axes"] = {
        "length": {"attribute": "preference_classifier", "order": ["short", "long"]},
        "quality": {"attribute": "preference_classifier", "order": ["bad", "good"]},
    }
    config.write_text(yaml.safe_dump(content))
    assert run(compare, [str(config)]) == 2
    told = capsys.readouterr().err
    assert (
        "axes.quality.attribute: preference_classifier judges axes.length already; it is trained for one axis" in told
    )


def test_a_training_that_cannot_be_is_told_by_its_rival(tiny_base: Path, tmp_path: Path) -> None:
    """Whatever it is: no setting of a comparison is known to get as far."""
    config = comparison_config(tiny_base, tmp_path)
    job = Job(("short", "long"), AsItIs(), {"stage2": {"model_rank": 0}}, controls=True)
    rival = Rival("odd", "an odd one", lambda config, point: [job])
    message = r"rivals: odd x1 cannot be trained: stage2\.model_rank: Input should be greater than or equal to 1, not 0"
    with pytest.raises(TrainingError, match=message):
        check_trainings(config, [rival])
