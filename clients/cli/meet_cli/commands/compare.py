"""`meet compare`: MEET beside its rivals on one budget. Knows the words of the command line alone."""

from __future__ import annotations

from pathlib import Path

import click

from meet_cli.arguments import split_arguments
from meet_cli.extras import require
from meet_cli.figures import figures_console, json_option, write_figures
from meet_cli.progress import duration, tell_step, telling


@click.command(
    short_help="Compare MEET with its rivals on one budget.",
    epilog="Example: meet compare examples/compare/demo.yaml --only prompting --only meet_lora_joint",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.yaml [--a.b=c ...]")
@click.option("--only", multiple=True, metavar="RIVAL", help="Train and measure this rival alone; may be repeated.")
@click.option("--no-run", is_flag=True, help="Train nothing: show what is complete.")
@json_option
def compare(arguments: tuple[str, ...], only: tuple[str, ...], no_run: bool, json_file: Path | None) -> None:
    """Train every rival that CONFIG.yaml names with the same data, tokens and search, and show who is ahead.

    Results are kept in the folder that the configuration names as they come: the same command goes on where it was
    stopped, and several at once share the work. Any field of the configuration can be set on the command line:
    --budget.pairs=64.
    """
    path, overrides = split_arguments(arguments, what="CONFIG.yaml")
    require("training", "meet compare")
    from transformers.utils import logging

    from meet_training.rivals.compare import Comparison
    from meet_training.rivals.compare_config import load_compare_config
    from meet_training.rivals.report import report_data, rows_of, show

    config = load_compare_config(Path(path), overrides)
    logging.disable_progress_bar()  # its bars for loading would break into ours
    with telling() as tell:
        comparison = Comparison(config, tell, on_step=tell_step)
        if not no_run:
            spent = comparison.run(only)
            tell_step(f"{spent.num_new} results added in {duration(spent.seconds)}")
        rows = rows_of(comparison)
    show(figures_console(), comparison, rows)
    write_figures(json_file, report_data(comparison, rows))
