"""An evaluation's figures for people, as a table and examples, and for programs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from meet_bundle import Manifest
from meet_bundle.bundle import write_atomically
from meet_training.errors import TrainingError
from meet_training.evaluation.evaluate import Row
from meet_training.evaluation.evaluation_config import EvaluationConfig
from meet_training.evaluation.figures import Share

EVALUATION_FILE = "evaluation.json"


def report_data(
    manifest: Manifest,
    config: EvaluationConfig,
    rows: Sequence[Row],
    *,
    num_prompts: int,
    skipped: str | None,
) -> dict[str, Any]:
    """The report as JSON has it. `skipped` says why nobody was prompted, where that is so."""
    return {
        "bundle": {"name": manifest.name, "digest": manifest.digest, "base": manifest.base.source},
        "num_prompts": num_prompts,
        "interval": "95%, Wilson score",
        "config": config.model_dump(mode="json"),
        "prompted_skipped": skipped,
        "preferences": [{**asdict(row), "below_bound": row.below_bound} for row in rows],
    }


def write_report(folder: Path, data: dict[str, Any]) -> Path:
    """Writes `evaluation.json` into a bundle's report folder, made where it is missing; returns its path.

    Raises TrainingError where it cannot be written.
    """
    file = folder / EVALUATION_FILE
    try:
        folder.mkdir(exist_ok=True)
        write_atomically(file, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise TrainingError(f"{file} cannot be written: {error.strerror}") from None
    return file


def show(console: Console, rows: Sequence[Row], *, num_prompts: int, skipped: str | None) -> None:
    """Prints the table, then the reply of median length of each preference."""
    console.print(_table(rows, num_prompts))
    if skipped:
        console.print(f"nobody was prompted: {skipped}", markup=False, soft_wrap=True)
    for row in rows:
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


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{_percent(share.share)} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
