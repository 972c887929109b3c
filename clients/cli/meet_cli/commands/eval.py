"""`meet eval`: does each control of a bundle hold? Knows the words of the command line alone."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meet_cli.evaluating import Servers, evaluate_bundle, refuse_failures, show
from meet_cli.extras import require
from meet_cli.figures import json_option, write_figures
from meet_cli.phases import Phases


@click.command(
    name="eval",
    short_help="Measure whether each control holds.",
    epilog="Example: meet eval bundles/demo --data examples/demo/prompts.test.jsonl --limit 20",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="JSON Lines with `prompt` or `messages`.")
@click.option("--config", type=click.Path(path_type=Path), help="What each axis is measured by: evaluation.yaml.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask the first N prompts only.", metavar="N")
@click.option("--url", help="Ask the MEET server that runs there; its key is $MEET_API_KEY.")
@click.option("--no-base", is_flag=True, help="Do not compare with the base model that is plainly prompted.")
@json_option
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
def evaluate(
    bundle: Path,
    data: Path | None,
    config: Path | None,
    limit: int | None,
    url: str | None,
    no_base: bool,
    json_file: Path | None,
    engine_args: tuple[str, ...],
) -> None:
    """Measure on the prompts of a file whether each control of the folder BUNDLE holds.

    For every preference three replies to each prompt are compared: the controlled one, the uncontrolled one,
    and the base model's when it is plainly prompted with the preference's instruction. The figures go to
    report/evaluation.json in BUNDLE too. Exits 1 where a bound of the configuration does not hold.
    """
    require("training", "meet eval")
    from meet_bundle import open_bundle
    from meet_training.evaluation.evaluation_config import EvaluationConfig, load_evaluation_config

    given = {name: value for name, value in (("prompts", data), ("limit", limit)) if value is not None}
    loaded = EvaluationConfig() if config is None else load_evaluation_config(config)
    servers = Servers(engine_args, url, os.environ.get("MEET_API_KEY"), prompt_base=not no_base)
    phases = Phases()
    evaluated = evaluate_bundle(open_bundle(bundle), loaded.model_copy(update=given), servers, phases)
    show(evaluated)
    click.echo(f"time spent: {phases}", err=True)
    write_figures(json_file, evaluated.data)
    refuse_failures(evaluated)
