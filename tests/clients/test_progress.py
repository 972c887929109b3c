"""How progress is told: lines now and then, bars on a terminal, durations in words."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from meet_cli.phases import Phases
from meet_cli.progress import duration, telling


def test_plain_lines_come_first_last_and_every_ten_seconds() -> None:
    out, now = io.StringIO(), 0.0
    with telling(Console(file=out, width=40), clock=lambda: now) as tell:
        for second in range(0, 26, 4):
            now = float(second)
            tell("stage1", second, 24, "[bold] loss 1.0, and a lot more than would fit on one line")
        tell("stage2", 1, 2, "")
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == [
        "stage1: 0/24",
        "stage1: 12/24",
        "stage1: 24/24",
        "stage2: 1/2",
    ]
    assert "[bold]" in out.getvalue()


def test_a_terminal_gets_bars() -> None:
    out = io.StringIO()
    with telling(Console(file=out, force_terminal=True, width=100)) as tell:
        tell("stage1", 1, 2, "loss 1.0")
        tell("stage1", 2, 2, "loss 0.5")
    assert "━" in out.getvalue()
    assert "loss 0.5" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 63.0, 63.0, 65.0, 70.0, 71.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    phases = Phases()
    for name in ("training", "replies", "training"):
        with phases.timed(name):
            pass
    assert phases.seconds == {"training": 64.0, "replies": 2.0}
    assert str(phases) == "training 1 min 4 s, replies 2 s"
