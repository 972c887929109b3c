"""`meet data inspect` as a person runs it: what it prints, what it writes, and what it refuses with one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from meet_cli.main import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/data"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Inspect = Callable[..., Outcome]


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Inspect:
    monkeypatch.chdir(ROOT)

    def inspect(*arguments: object) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["meet", "data", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            sys.exit(main())
        return Outcome(int(caught.value.code or 0), *capfd.readouterr())

    return inspect


def test_a_configuration_in_its_bases_tokens(inspect: Inspect, tiny_base: Path, tmp_path: Path) -> None:
    figures = tmp_path / "found.json"
    test = EXAMPLES / "pointwise.jsonl"
    outcome = inspect(EXAMPLES / "pairwise.yaml", f"--base={tiny_base}", "--test", test, "--json", figures)
    assert outcome.status == 0, outcome.err
    said = outcome.out
    assert "pairwise.jsonl: 3 rows, form pairwise, since it has the columns 'chosen' and 'rejected'" in said
    assert "--form=FORM" in said
    assert "6 of its 6 rows have a prompt that is in the data, 6 the same reply too" in said
    assert "supervised is what stands between [[ and ]]" in said
    assert "<|im_start|>assistant\n[[Yeast makes gas.<|im_end|>]]\n" in said
    assert "preferred to: Yeast eats the sugar" in said
    found = json.loads(figures.read_text())
    assert found["unit"] == "tokens"
    assert found["preferences"]["concise"]["pairs"] == 3
    assert found["preferences"]["concise"]["supervised"]["max"] == len("Rivers bring salt.") + 1
    assert found["test"] == {"rows": 6, "prompts_in_both": 6, "replies_in_both": 6}


def test_pairs_that_are_taken_where_the_objective_wants_pairs(
    inspect: Inspect, tiny_base: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "found.json"
    asked = (EXAMPLES / "pointwise.yaml", f"--base={tiny_base}", "--json", figures)
    outcome = inspect(*asked, "--examples_per_preference=2", "--objective={kind: preference}")
    assert outcome.status == 0, outcome.err
    assert "pairs taken" in outcome.out
    found = json.loads(figures.read_text())["preferences"]
    assert [(each["taken"], each["could_pair"], each["pairs_taken"]) for each in found.values()] == [(2, 3, 2)] * 2
    assert "pairs taken" not in inspect(*asked).out


def test_supervised_tokens_stand_in_colour_where_there_is_some(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    outcome = inspect(EXAMPLES / "pointwise.jsonl")
    assert "supervised is what stands in green" in outcome.out
    assert "\x1b[1;32mYeast makes gas.\x1b[0m" in outcome.out
    assert "[[" not in outcome.out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[Yeast makes gas.]]" in inspect(EXAMPLES / "pointwise.jsonl").out


def test_a_file_with_options_and_no_base(inspect: Inspect) -> None:
    outcome = inspect(EXAMPLES / "scores.csv", "--columns={prompt: question, reply: answer, preference: words}")
    assert outcome.status == 0, outcome.err
    assert "form pointwise, since it has the column 'words'" in outcome.out
    assert "give --base MODEL for lengths in tokens" in outcome.out
    pairs = inspect(EXAMPLES / "hh.jsonl")
    assert "form hh" in pairs.out
    assert "labels: chosen 3, rejected 3" in pairs.out


def test_a_data_set_of_the_hub(inspect: Inspect) -> None:
    outcome = inspect("examples/data/hub")
    assert outcome.status == 0, outcome.err
    assert "6 rows, form pointwise" in outcome.out


MISTAKES = {
    "nothing": ((), "expected one DATA, found none"),
    "no such file": (("none.jsonl",), "none.jsonl cannot be read"),
    "no data": (("README.md",), "README.md: data files end in"),
    "no name": (("something",), "expected a configuration (.yaml), a data file"),
    "field": ((EXAMPLES / "pointwise.jsonl", "--colums.prompt=q"), "colums: unknown key"),
    "form": (
        (EXAMPLES / "pointwise.jsonl", "--form=triples"),
        "form: Input should be 'auto', 'pointwise', 'pairwise', 'hh', 'unpaired' or 'scored', not 'triples'",
    ),
    "other form": ((EXAMPLES / "pointwise.jsonl", "--form=hh"), ":1: field 'chosen' is missing"),
    "bad row": ((EXAMPLES / "malformed/pairwise.jsonl",), ":2: field 'rejected' is missing"),
    "length": ((EXAMPLES / "pointwise.jsonl", "--max-length", "0"), "--max-length"),
    "base": ((EXAMPLES / "pointwise.jsonl", "--base", "/no/such/folder"), "base: '/no/such/folder' is no model"),
    "folder": (("docs",), "hub: 'docs' cannot be loaded"),
    "test": ((EXAMPLES / "pointwise.jsonl", "--test", "none.jsonl"), "none.jsonl cannot be read"),
    "json": ((EXAMPLES / "pointwise.jsonl", "--json", "/no/folder/x.json"), "there is no folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(inspect: Inspect, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]
    outcome = inspect(*arguments)
    errors = [line for line in outcome.err.splitlines() if line.startswith("meet: error:")]
    assert outcome.status == 2, outcome.err
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in outcome.err
