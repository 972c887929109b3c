"""The example of answer-length styles: its files are made from the data set, and its configurations read them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from meet_training.config import load_config
from meet_training.evaluation.evaluation_config import load_evaluation_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "answer_length"
NUM_TRAINED = 400


def row(number: int, style: str, model: str = "gpt-3.5-turbo-1106", *, near: bool | None = None) -> str:
    """Answers of two words, detailed ones of four, and of three where they are near: to every tenth question."""
    near = number % 10 == 0 if near is None else near
    more = {"verbose": " and" if near else " and more"}.get(style, "")
    output = f"{style} {number}{more}"
    fields = {"instruction": f"question {number}", "output": output, "style": style, "model": model}
    return json.dumps(fields) + "\n"


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_trained_calibrated_and_tested_on_are_different_prompts(tmp_path: Path) -> None:
    styles = ("concise", "plain", "verbose")
    for part, numbers in (("train", range(NUM_TRAINED + 2)), ("valid", range(900, 903))):
        lines = [row(number, style) for number in numbers for style in styles] + [row(7, "concise", "another")]
        with gzip.open(tmp_path / f"answer_length_styles.{part}.jsonl.gz", "wt") as file:
            file.writelines(lines)
    target = tmp_path / "made"
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(tmp_path), "--target", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    made = {path.name: read(path) for path in target.iterdir()}
    trained = {each["prompt"] for each in made["train.jsonl"]}
    assert trained == {f"question {number}" for number in range(NUM_TRAINED) if number % 10}
    assert len(made["train.jsonl"]) == 2 * len(trained)
    assert {each["preference"] for each in made["train.jsonl"]} == {"concise", "detailed"}
    put_by, too_near = [400, 401], range(0, NUM_TRAINED, 10)
    assert made["calibration.prompts.jsonl"] == [{"prompt": f"question {number}"} for number in (*put_by, *too_near)]
    assert made["test.prompts.jsonl"] == [{"prompt": f"question {number}"} for number in range(900, 903)]
    assert [each["reply"] for each in made["test.neutral.jsonl"]] == [f"plain {number}" for number in range(900, 903)]
    assert len(made["test.pairs.jsonl"]) == 6
    assert made["test.pairs.jsonl"][1] == {
        "prompt": "question 900",
        "reply": "verbose 900 and",
        "preference": "detailed",
    }


def test_other_writers_answers_are_trained_on_where_one_writers_are_too_near_each_other(tmp_path: Path) -> None:
    styles = ("concise", "plain", "verbose")
    for part in ("train", "valid"):
        lines = [row(number, style, "another", near=number != 20) for number in range(32) for style in styles]
        lines += [row(number, style) for number in range(32) for style in styles]
        with gzip.open(tmp_path / f"answer_length_styles.{part}.jsonl.gz", "wt") as file:
            file.writelines(lines)
    target = tmp_path / "made"
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(tmp_path), "--target", str(target)]
    subprocess.run([*command, "--any-writer", "--num-trained=30"], check=True, capture_output=True)
    trained = read(target / "train.jsonl")
    assert [each["prompt"] for each in trained[::2]] == [f"question {n}" for n in range(30) if n % 10 or n == 20]
    assert trained[0] == {"prompt": "question 1", "reply": "concise 1", "preference": "concise"}
    assert [each["prompt"] for each in read(target / "calibration.prompts.jsonl")] == [
        f"question {number}" for number in (30, 31, 0, 10)
    ]
    assert len(read(target / "test.pairs.jsonl")) == 64  # one writer's


def test_the_configurations_read_what_is_made() -> None:
    train = load_config(EXAMPLE / "train.yaml")
    evaluation, calibration = (
        load_evaluation_config(EXAMPLE / name) for name in ("evaluation.yaml", "calibration.yaml")
    )
    named = [train.data[0].path, evaluation.prompts, evaluation.pairs, evaluation.neutral, calibration.prompts]
    build = EXAMPLE.parents[1] / "build" / "answer_length"
    assert [path.resolve() for path in named if isinstance(path, Path)] == [
        build / name
        for name in (
            "train.jsonl",
            "test.prompts.jsonl",
            "test.pairs.jsonl",
            "test.neutral.jsonl",
            "calibration.prompts.jsonl",
        )
    ]
