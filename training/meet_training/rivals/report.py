"""A comparison for people, as a table, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from meet_training.evaluation.bootstrap import NUM_RESAMPLES, Estimate
from meet_training.rivals.compare import Comparison
from meet_training.rivals.registry import RIVALS
from meet_training.rivals.standing import FIGURES, Outcome, Row, Standing, standings

_MARKS = {Standing.AHEAD: "ahead", Standing.BEHIND: "behind", Standing.LEVEL: "="}
NUMBERS = ("tokens", "seconds", "parameters", "holds", "log-odds", "perplexity", "broken", "medians")
CAPTION = (
    "tokens: of replies, learned with one seed; seconds: of training; log-odds: nats a token; "
    "perplexity: of neutral replies, over the base's"
)
INTERVAL = (
    f"95%, percentile bootstrap over prompts ({NUM_RESAMPLES} resamples) with Student's t for the seeds; of holds the "
    "wider of that and Wilson's score interval for as many prompts"
)


def rows_of(comparison: Comparison) -> list[Row]:
    """The figures of every rival of which nothing is missing."""
    setting, outcomes = comparison.setting, comparison.outcomes()
    if not outcomes:
        return []
    return standings(outcomes, comparison.trials.base(), setting.pairs, setting.test_rows)


def report_data(comparison: Comparison, rows: Sequence[Row]) -> dict[str, Any]:
    """The comparison as JSON has it."""
    setting, config = comparison.setting, comparison.config
    return {
        "config": config.without_folders().model_dump(mode="json"),
        "interval": INTERVAL,
        "num_test_prompts": len(setting.split.test),
        "num_tuning_prompts": len(setting.split.tuning),
        "classifier_accuracy": asdict(right) if (right := setting.judge_accuracy) else None,
        "missing": missing(comparison, rows),
        "rivals": [asdict(row) for row in rows],
        "searched": {outcome.name: _searched(comparison, outcome) for outcome in comparison.outcomes()},
    }


def missing(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """Rivals that take part and are not complete yet."""
    there = {row.name for row in rows}
    return [rival.name for rival in comparison.rivals if rival.name not in there]


def show(console: Console, comparison: Comparison, rows: Sequence[Row]) -> None:
    """Prints the table and what must be known to read it."""
    config, setting = comparison.config, comparison.setting
    console.print(_table(rows, config.beside, len(setting.split.test)))
    console.print(INTERVAL, markup=False, soft_wrap=True)
    if right := setting.judge_accuracy:
        console.print(
            f"the preference classifier is right on {100 * right.share:.1f}% of {right.num_prompts} tested pairs "
            f"[{100 * right.low:.0f}, {100 * right.high:.0f}]",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if left := missing(comparison, rows):
        console.print(f"not complete yet: {', '.join(left)}", markup=False, soft_wrap=True)


def _table(rows: Sequence[Row], reference: str, num_prompts: int) -> Table:
    table = Table(
        "rival",
        "rate",
        title=f"Rivals on one budget, {num_prompts} prompts; ahead, behind: of {reference}, beyond the interval",
        caption=CAPTION,
    )
    for heading in NUMBERS:
        table.add_column(heading, justify="right")
    for row in rows:
        marks = {name: _mark(row, name, reference) for name in FIGURES}
        table.add_row(
            f"{row.name} ({row.num_seeds})",
            row.point,
            f"{row.cost.learned_tokens / 1e3:.1f}k",
            f"{row.cost.seconds:.0f}",
            f"{row.cost.parameters / 1e6:.1f}M",
            f"{_percent(row.holds)}{marks['holds']}",
            f"{row.log_odds.shown(3)}{marks['log_odds']}",
            "-" if row.perplexity_ratio is None else row.perplexity_ratio.shown(3),
            f"{100 * row.broken:.0f}%",
            " | ".join(f"{value:.4g}" for value in row.medians.values()),
            style="bold" if row.name == reference else None,
        )
    return table


def _mark(row: Row, figure: str, reference: str) -> str:
    beside = row.beside.get(reference)
    return "" if beside is None else f" {_MARKS[beside[figure].standing]}"


def _searched(comparison: Comparison, outcome: Outcome) -> list[dict[str, Any]]:
    """Every point that was tried, with what it was chosen by."""
    rival = RIVALS[outcome.name]
    return [
        {
            "point": str(point),
            **asdict(comparison.quality(rival, result)),
            "chosen": point == outcome.point,
        }
        for point, result in outcome.searched.items()
    ]


def _percent(each: Estimate) -> str:
    return f"{100 * each.value:.1f}% [{100 * each.low:.0f}, {100 * each.high:.0f}]"
