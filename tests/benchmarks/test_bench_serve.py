"""What `bench_serve.py` makes of its measurements: nothing is served here."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_serve
import pytest
from bench_serve import Size, chosen, line, measure
from serve_load import Load, Measured
from serve_rows import ROWS, Row, Served, Side, uncontrolled_rows

ROW = Row("ours / other", 2, Side("ours", "a", {}), Side("other", "b", {}), bound=0.98, num_tokens=10)


class Scripted(Load):
    """Gives each side the values of its own list in turn, after one round of each, twice, to warm up."""

    def __init__(self, ours: list[float], other: list[float]) -> None:
        self.values = {"ours": iter([1.0, 1.0, *ours]), "other": iter([1.0, 1.0, *other])}
        self.asked: list[tuple[str, int, int | None]] = []

    def run(self, row: Row, side: Side, num_requests: int, num_tokens: int | None = None) -> Measured:
        self.asked.append((side.name, num_requests, num_tokens))
        return Measured(1.0 if num_tokens else next(self.values[side.name]), 2.0)


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    # Of how the machine's speed changes the two of a pair feel the same: medians of each side would say 300 / 100.
    load = Scripted([100, 300, 500], [100, 200, 50])
    result = measure(ROW, Size(pairs=3, seconds=0), load)
    assert (result.pairs, result.ratio, result.holds) == ([1.0, 1.5, 10.0], 1.5, True)
    assert (result.ours, result.other) == (300, 100)


@pytest.mark.parametrize(("asked", "measured"), [(None, 7), (3, 3), (9, 9)])
def test_a_row_says_how_many_pairs_unless_the_command_does(asked: int | None, measured: int) -> None:
    result = measure(replace(ROW, pairs=7), Size(pairs=asked, seconds=0), Scripted([1] * 9, [1] * 9))
    assert len(result.pairs) == measured


def test_sides_take_turns_and_none_is_always_first() -> None:
    load = Scripted([1] * 4, [1] * 4)
    measure(ROW, Size(pairs=4, seconds=0), load)
    measured = [name for name, _, _ in load.asked[4:]]
    assert measured == ["other", "ours", "ours", "other", "other", "ours", "ours", "other"]


def test_both_sides_get_as_many_requests() -> None:
    load = Scripted([1] * 3, [1] * 3)
    measure(ROW, Size(pairs=3, seconds=60), load)  # 2 at once of 10 tokens take 20 s at 1 token/s: three rounds
    assert {num for _, num, _ in load.asked[4:]} == {6}


def test_every_preference_was_asked_for_before() -> None:
    row = replace(ROW, ours=Side("ours", "a", {}, ({}, {}, {})))
    load = Scripted([1], [1])
    measure(row, Size(pairs=1, seconds=0), load)
    assert load.asked[0] == ("ours", 3, 1)


@pytest.mark.parametrize(
    ("value", "prompt_tokens", "holds"), [(0.98, None, True), (0.97, None, False), (0.98, 8, True), (0.99, 8, False)]
)
def test_a_bound_is_a_lower_one_and_of_milliseconds_an_upper_one(
    value: float, prompt_tokens: int | None, holds: bool
) -> None:
    result = measure(replace(ROW, prompt_tokens=prompt_tokens), Size(1, 0), Scripted([value], [1]))
    assert result.holds is holds
    assert ("BROKEN" in line(result)) is not holds


def test_rows_are_chosen_by_what_is_printed_of_them() -> None:
    rows = uncontrolled_rows(Served("", "", ""))
    assert [row.concurrent for row in chosen(rows, ", 8 at once")] == [8]
    assert chosen(rows, "") == rows


def test_a_name_that_no_row_has_is_refused_before_anything_is_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_serve, "served", pytest.fail)
    with pytest.raises(SystemExit):
        bench_serve.main(["--only", "nothing"])
    assert "has 'nothing' in its name" in capsys.readouterr().err


def test_every_row_of_the_command_has_a_name_of_its_own() -> None:
    titles = [
        bench_serve.title(row.name, row.concurrent) for group in ROWS.values() for row in group.rows(Served("", "", ""))
    ]
    assert len(set(titles)) == len(titles)


def test_a_missed_bound_is_the_exit_status_and_rows_are_written_as_they_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = itertools.cycle([1.0, 0.5, 1.0])
    target = tmp_path / "figures.json"

    class Context:
        def __enter__(self) -> Any:
            return Served("", "", "")

        def __exit__(self, *_: object) -> None: ...

    def measured(row: Row, size: Size, load: Load) -> bench_serve.Result:
        result = measure(replace(row, ours=ROW.ours, other=ROW.other), Size(1, 0), Scripted([next(values)], [1]))
        written.append(len(json.loads(target.read_text())["rows"]) if target.exists() else 0)
        return result

    written: list[int] = []
    monkeypatch.setattr(bench_serve, "served", lambda *_: Context())
    monkeypatch.setattr(bench_serve, "load_process", Context)
    monkeypatch.setattr(bench_serve, "measure", measured)
    asked = ["--bundle", str(tmp_path), "--rows", "uncontrolled", "--json", str(target)]
    assert bench_serve.main(asked) == 1
    assert written == [0, 1, 2]
    rows = json.loads(target.read_text())["rows"]
    assert [row["holds"] for row in rows] == [True, False, True]
    assert bench_serve.main([*asked, "--only", ", 1 at once"]) == 0
    assert bench_serve.main([*asked, "--only", ", 1 at once", "--quick"]) == 0
