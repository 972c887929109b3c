"""An evaluation's figures for people, as a table and examples, and for programs, as JSON. The page is in `page.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from meet_bundle.bundle import write_atomically
from meet_training.errors import TrainingError
from meet_training.evaluation.bootstrap import NUM_RESAMPLES, Estimate
from meet_training.evaluation.evaluate import Row
from meet_training.evaluation.examples import examples
from meet_training.evaluation.figures import Share
from meet_training.evaluation.mixes import mix_name
from meet_training.evaluation.page import page
from meet_training.evaluation.plan import Plan
from meet_training.evaluation.results import Results

EVALUATION_FILE = "evaluation.json"
PAGE_FILE = "evaluation.html"
INTERVAL = (
    f"95%; of shares Wilson's score interval, of everything else the percentile bootstrap over prompts "
    f"({NUM_RESAMPLES} resamples)"
)


def report_data(plan: Plan, results: Results, no_rival: str | None) -> dict[str, Any]:
    """The report as JSON has it. `no_rival` says why nobody was prompted, where that is so."""
    subject = plan.subject
    return {
        "bundle": {"name": subject.name, "digest": subject.digest, "base": subject.base},
        "num_prompts": len(plan.prompts),
        "interval": INTERVAL,
        "config": plan.config.without_files(),
        "prompted_skipped": no_rival,
        "skipped": results.skipped,
        "preferences": [_preference(row) for row in results.rows],
        "leakage": [{**asdict(cell), "leaks": cell.leaks} for cell in results.leakage],
        "strength": [asdict(curve) for curve in results.curves],
        "mixes": [asdict(mix) for mix in results.mixes],
        "log_odds": [asdict(odds) for odds in results.log_odds],
        "log_odds_by_strength": [asdict(curve) for curve in results.odds_curves],
        "similarity": results.similarity,
        "side_effects": [asdict(effects) for effects in results.side_effects],
        "parity": None if results.parity is None else asdict(results.parity),
        "length": [asdict(length) for length in results.lengths],
        "judge": [asdict(judged) for judged in results.judged],
        "examples": [asdict(example) for example in examples(plan, results)],
    }


def write_report(folder: Path, data: dict[str, Any]) -> Path:
    """Writes `evaluation.json` and the page beside it into a folder, made where it is missing. Returns the former.

    Raises TrainingError where they cannot be written.
    """
    files = {
        EVALUATION_FILE: json.dumps(data, indent=2, ensure_ascii=False) + "\n",
        PAGE_FILE: page(data),
    }
    for name, content in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, content.encode())
        except OSError as error:
            raise TrainingError(f"{folder / name} cannot be written: {error.strerror}") from None
    return folder / EVALUATION_FILE


def show(console: Console, results: Results, *, num_prompts: int, skipped: str | None) -> None:
    """Prints a sentence a preference, the tables, then the reply of median length of each preference.

    `skipped` says why nobody was prompted, where that is so.
    """
    for row in results.rows:
        console.print(row.sentence, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(results.rows, num_prompts))
    for table in (_curves(results), _mixes(results), _log_odds(results), _odds_curves(results)):
        if table.row_count:
            console.print(table)
    if skipped:
        console.print(f"nobody was prompted: {skipped}", markup=False, soft_wrap=True)
    for figure, why in results.skipped.items():
        console.print(f"{figure} was not measured: {why}", markup=False, soft_wrap=True)
    for row in results.rows:
        heading = f"\n{row.preference}, the reply of median length, to {row.example.prompt!r}:"
        console.print(heading, markup=False, highlight=False, style="bold", soft_wrap=True)
        console.print(row.example.reply.strip(), markup=False, highlight=False, soft_wrap=True)


def failures(rows: Sequence[Row]) -> list[str]:
    """One line for every preference that holds on fewer prompts than its bound."""
    return [
        f"{row.preference} holds on {_percent(row.holds.share)} of {row.holds.num_prompts} prompts, "
        f"the bound of its axis {row.axis} is {_percent(row.bound or 0.0)}"
        for row in rows
        if row.below_bound
    ]


def _preference(row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "median_controlled": row.median_controlled,
        "median_uncontrolled": row.median_uncontrolled,
        "median_prompted": row.median_prompted,
        "below_bound": row.below_bound,
        "verdict": row.verdict.value,
        "sentence": row.sentence,
    }


def _table(rows: Sequence[Row], num_prompts: int) -> Table:
    table = Table(
        title=f"Does the control hold? {num_prompts} prompts, 95% intervals",
        caption="medians: controlled | uncontrolled | prompted base model; holds: on the asked side of its opposite",
    )
    for heading in ("preference", "axis", "attribute"):
        table.add_column(heading)
    for heading in ("medians", "holds", "prompted holds", "holds vs uncontrolled", "finished"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.preference,
            row.axis,
            row.attribute,
            f"{row.median_controlled:.4g} | {row.median_uncontrolled:.4g} | {_number(row.median_prompted)}",
            _share(row.holds_vs_opposite),
            _share(row.prompted_holds_vs_opposite),
            _share(row.holds_vs_uncontrolled),
            _percent(row.finished.share),
            style="red" if row.below_bound else None,
        )
    return table


def _curves(results: Results) -> Table:
    title = f"Strength: median or mean of the attribute{_behind(curve.rank_correlation for curve in results.curves)}"
    table = Table("control", "attribute", title=title)
    for heading in ("", "at strength", "rank correlation", "monotone", "recommended"):
        table.add_column(heading, justify="right")
    for curve in results.curves:
        table.add_row(
            curve.preference,
            curve.attribute,
            curve.summary,
            "  ".join(f"{point.strength:g}: {point.typical(curve.summary).value:.4g}" for point in curve.points),
            curve.rank_correlation.shown(2),
            "yes" if curve.monotone else "no",
            f"{curve.recommended:g}",
        )
    return table


def _mixes(results: Results) -> Table:
    table = Table("mix", title=f"Mixes: both properties at once{_behind(mix.both for mix in results.mixes)}")
    for heading in ("both", "prompted both", "first", "second"):
        table.add_column(heading, justify="right")
    for mix in results.mixes:
        name = mix_name(mix.preferences, mix.strengths)
        table.add_row(name, _share(mix.both), _share(mix.prompted_both), _share(mix.first), _share(mix.second))
    return table


def _log_odds(results: Results) -> Table:
    title = f"How far each control prefers its own side of paired replies{_behind(o.mean for o in results.log_odds)}"
    table = Table("control", "opposite", title=title)
    for heading in ("nats a token", "prefers its own"):
        table.add_column(heading, justify="right")
    for odds in results.log_odds:
        table.add_row(odds.preference, odds.opposite, odds.mean.shown(3), _share(odds.prefers_own))
    return table


def _odds_curves(results: Results) -> Table:
    table = Table("control", "opposite", title="The same at each strength")
    for heading in ("at strength, nats a token", "rank correlation", "monotone"):
        table.add_column(heading, justify="right")
    for curve in results.odds_curves:
        table.add_row(
            curve.preference,
            curve.opposite,
            "  ".join(f"{point.strength:g}: {point.mean.value:.3f}" for point in curve.points),
            curve.rank_correlation.shown(2),
            "yes" if curve.monotone else "no",
        )
    return table


def _behind(figures: Iterable[Share | Estimate]) -> str:
    """How many prompts are behind each, for the end of a title; fewer than the whole evaluation's, often."""
    numbers = sorted({figure.num_prompts for figure in figures})
    return f", {' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} prompts" if numbers else ""


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{_percent(share.share)} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
