"""What `meet data inspect` counts: forms, labels, lengths, duplicates, overlap with a test file, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meet_training.config import TrainConfig
from meet_training.data.dataset import DataSet, open_data
from meet_training.data.forms import for_objective, load_examples
from meet_training.data.inspection import Inspection, Lengths, OverlapFigures, Wanted, inspect
from meet_training.data.measure import Segment, Tokens, Words, tokens_of
from meet_training.data_config import DataConfig
from meet_training.errors import TrainingError


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(prompt: str, reply: str, preference: str) -> dict[str, str]:
    return {"prompt": prompt, "reply": reply, "preference": preference}


ROWS = (
    row("q one", "a b", "short"),
    row("q one", "a b c d", "long"),
    row("q two", "a", "short"),
    row("q two", "a", "short"),
    row("q two", "a", "long"),
    row("q three", "x", "other"),
)
OPPOSITES = {"short": "long", "long": "short", "absent": None}


def opened(path: Path, **options: Any) -> DataSet:
    return open_data(DataConfig.model_validate({"path": path, **options}))


def inspected(tmp_path: Path, **more: Any) -> Inspection:
    labels = {"short": "short", "long": "long"}
    return inspect([opened(write(tmp_path / "d.jsonl", *ROWS), labels=labels)], Words(), Wanted(OPPOSITES), **more)


def test_counts_by_hand(tmp_path: Path) -> None:
    found = inspected(tmp_path)
    assert (found.data[0].form, found.data[0].rows, found.data[0].bad_rows) == ("pointwise", 6, 0)
    assert found.data[0].why == "it has the column 'preference'"
    assert found.labels == {"short": 3, "long": 2, "other": 1}
    assert found.not_wanted == 1
    assert (found.duplicates, found.in_several) == (1, 1)
    short, long = found.preferences["short"], found.preferences["long"]
    assert (short.examples, long.examples, found.preferences["absent"].examples) == (3, 2, 0)
    assert short.supervised == Lengths(p50=1, p90=2, max=2)
    assert short.whole == Lengths(p50=4, p90=5, max=5)  # "user: q two" and the reply
    assert (short.pairs, short.could_pair, long.could_pair) == (0, 3, 2)
    assert found.preferences["absent"].whole is None


def test_labels_that_mean_one_preference_are_counted_and_its_example_once(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "reply": "a", "preference": labels} for labels in (["short", "brief"], ["long", "odd"])]
    labels = {"short": "short", "brief": "short", "long": "long"}
    found = inspect([opened(write(tmp_path / "d.jsonl", *rows), labels=labels)], Words(), Wanted(OPPOSITES))
    assert found.labels == {"short": 1, "brief": 1, "long": 1, "odd": 1}
    assert (found.preferences["short"].examples, found.duplicates, found.not_wanted) == (1, 0, 1)


def test_what_training_takes(tmp_path: Path) -> None:
    data_sets = [opened(write(tmp_path / "d.jsonl", *ROWS[:5]), weight=weight) for weight in (2, 1)]
    found = inspect(data_sets, Words(), Wanted(OPPOSITES))
    assert (found.preferences["short"].examples, found.preferences["short"].taken) == (6, 4)
    limited = inspect([opened(tmp_path / "d.jsonl")], Words(), Wanted(OPPOSITES, limit=2))
    assert (limited.preferences["short"].taken, limited.preferences["long"].taken) == (2, 2)


def test_the_pairs_that_training_takes(tmp_path: Path) -> None:
    """Six prompts that both answer, one of them alike, and two that one alone answers."""
    rows = [row(f"q{i}", f"{name} {i}", name) for i in range(6) for name in ("short", "long")]
    rows += [row("q6", "a", "short"), row("q7", "b", "short")]
    rows[0]["reply"] = rows[1]["reply"] = "the same"
    opposites = {"short": "long", "long": "short"}

    def found(**wanted: Any) -> list[tuple[int, int, int | None]]:
        path = write(tmp_path / "d.jsonl", *rows)
        inspection = inspect([opened(path)], Words(), Wanted(opposites, **wanted))
        return [(each.taken, each.could_pair, each.pairs_taken) for each in inspection.preferences.values()]

    assert found() == [(8, 6, None), (6, 6, None)]
    assert found(pairs=True) == [(8, 6, 5), (6, 6, 5)]
    fields = {
        "name": "t", "base": "none", "output": "out", "data": [{"path": tmp_path / "d.jsonl"}],
        "preferences": {label: {"axis": "length", "opposite": other} for label, other in opposites.items()},
        "objective": {"kind": "preference"}, "examples_per_preference": 3,
    }  # fmt: skip
    for seed in range(5):
        config = TrainConfig.model_validate(fields | {"seed": seed})
        trained = for_objective(load_examples(config), config)
        nums = [sum(example.rejected is not None for example in group) for group in trained.values()]
        assert found(pairs=True, limit=3, seed=seed) == [(3, 6, nums[0]), (3, 6, nums[1])]


def test_a_test_file_with_and_without_replies(tmp_path: Path) -> None:
    rows = [{"prompt": "q one"}, row("q two", "a", "?"), row("q two", "z", "?"), {"prompt": "new"}]
    test = opened(write(tmp_path / "test.jsonl", *rows))
    assert inspected(tmp_path, test=test).test == OverlapFigures(rows=4, prompts_in_both=3, replies_in_both=1)


def test_pairs_are_counted_and_bad_rows_shown(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "yes", "rejected": "no no"}
    path = write(tmp_path / "d.jsonl", pair, {**pair, "rejected": "yes"})
    found = inspect([opened(path, chosen="a", rejected="b", bad_rows="leave_out")], Words(), Wanted())
    assert (found.preferences["a"].pairs, found.preferences["b"].pairs) == (1, 1)
    assert (found.data[0].form, found.data[0].bad_rows) == ("pairwise", 1)
    assert found.data[0].first_bad_row is not None
    assert "d.jsonl:2: field 'rejected' must differ" in found.data[0].first_bad_row
    assert found.example == [Segment("user: q\n", False), Segment("yes", True)]
    assert found.example_rejected == "no no"


def test_lengths_in_tokens_are_those_of_training(tmp_path: Path, tiny_base: Path) -> None:
    tokens = tokens_of(tiny_base, "tiny")
    assert isinstance(tokens, Tokens)
    path = write(tmp_path / "d.jsonl", row("Hi", "ok", "a"), row("Hi", "x" * 50, "b"))
    found = inspect([opened(path)], tokens, Wanted(max_length=60))
    assert found.unit == "tokens"
    # One token a byte and one a mark: <s>user\nHi<e>\n is 10, <s>assistant\n is 11, ok<e> is 3.
    assert found.preferences["a"].whole == Lengths(p50=24, p90=24, max=24)
    assert found.preferences["a"].supervised == Lengths(p50=3, p90=3, max=3)
    assert (found.preferences["a"].too_long, found.preferences["b"].too_long) == (0, 1)
    assert found.example == [
        Segment("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        Segment("ok<|im_end|>", True),
    ]


def test_an_end_of_turn_that_is_not_the_end_of_sequence_counts_alone(turns_end_otherwise: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", row("Hi", "ok", "a"), row("Hi", "x", "b"))
    found = inspect([opened(path)], tokens_of(turns_end_otherwise, "tiny"), Wanted())
    assert found.preferences["a"].supervised == Lengths(p50=3, p90=3, max=3)
    assert found.example[-1] == Segment("ok<|im_end|>", True)


def test_nothing_to_inspect(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"d\.jsonl: no rows"):
        inspect([opened(write(tmp_path / "d.jsonl"))], Words(), Wanted())
    data = opened(write(tmp_path / "d.jsonl", ROWS[0]), labels={"x": "long"})
    with pytest.raises(TrainingError, match="no row is data of a preference"):
        inspect([data], Words(), Wanted())
