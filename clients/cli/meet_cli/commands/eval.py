"""`meet eval`: does each preference of a bundle, or of an endpoint, hold? Knows the words of the command line alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meet_cli.asking import Servers
from meet_cli.evaluating import calibrate, evaluate_bundle, evaluate_endpoint, refuse_failures, show
from meet_cli.extras import require
from meet_cli.figures import json_option, write_figures
from meet_cli.phases import Phases

if TYPE_CHECKING:
    from meet_training.evaluation.evaluation_config import EvaluationConfig


@click.command(
    name="eval",
    short_help="Measure whether each control holds.",
    epilog="Example: meet eval bundles/demo --data examples/demo/prompts.test.jsonl --limit 20",
)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="JSON Lines with `prompt` or `messages`.")
@click.option("--config", type=click.Path(path_type=Path), help="What each axis is measured by: evaluation.yaml.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask the first N prompts only.", metavar="N")
@click.option(
    "--figures",
    help="What to measure besides, with commas: leakage, side_effects, strength, mixes, log_odds, length, judge; "
    "`all` or `none`.",
)
@click.option("--url", help="Ask the server that runs there; its key is $MEET_API_KEY. BUNDLE may be left out.")
@click.option("--model", help="Without BUNDLE: the model's name at --url; the first that it lists otherwise.")
@click.option("--no-base", is_flag=True, help="Do not compare with the model that is plainly prompted.")
@click.option("--calibrate", "calibrating", is_flag=True, help="Measure strength; write its curve into the manifest.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where replies and report go: report/ in BUNDLE otherwise.",
)
@json_option
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
def evaluate(
    bundle: Path | None,
    data: Path | None,
    config: Path | None,
    limit: int | None,
    figures: str | None,
    url: str | None,
    model: str | None,
    no_base: bool,
    calibrating: bool,
    output: Path | None,
    json_file: Path | None,
    engine_args: tuple[str, ...],
) -> None:
    """Measure on the prompts of a file whether each control of the folder BUNDLE holds.

    For every preference three replies to each prompt are compared: the controlled one, the uncontrolled one,
    and the base model's when it is plainly prompted with the preference's instruction. The figures go to
    report/evaluation.json and report/evaluation.html in BUNDLE too. Without BUNDLE, --url and --output are
    needed: any OpenAI-compatible endpoint is measured. Exits 1 where a bound of the configuration does not hold.
    """
    require("training", "meet eval")
    from meet_bundle import open_bundle

    _check_options(bundle, url, model, calibrating, output)
    loaded = _config(config, data, limit, figures, calibrating)
    servers = Servers(engine_args, url, os.environ.get("MEET_API_KEY"), prompt_base=not no_base)
    phases = Phases()
    if bundle is None:
        evaluated = evaluate_endpoint(model, loaded, servers, phases, output or Path())
    else:
        opened = open_bundle(bundle)
        evaluated = evaluate_bundle(opened, loaded, servers, phases, output)
        if calibrating:
            calibrate(opened, evaluated)
    show(evaluated)
    click.echo(f"time spent: {phases}", err=True)
    click.echo(f"the report: {evaluated.folder / 'evaluation.html'}", err=True)
    write_figures(json_file, evaluated.data)
    refuse_failures(evaluated)


def _check_options(
    bundle: Path | None, url: str | None, model: str | None, calibrating: bool, output: Path | None
) -> None:
    if bundle is None and (url is None or output is None):
        raise click.UsageError("give BUNDLE, or --url and --output FOLDER to measure what runs there")
    if bundle is None and calibrating:
        raise click.UsageError("--calibrate needs BUNDLE: it writes into its manifest")
    if bundle is not None and model is not None:
        raise click.UsageError("--model is for --url without BUNDLE: a bundle has its own name")


def _config(
    path: Path | None, data: Path | None, limit: int | None, figures: str | None, calibrating: bool
) -> EvaluationConfig:
    from meet_training.evaluation.evaluation_config import EvaluationConfig, load_evaluation_config

    loaded = EvaluationConfig() if path is None else load_evaluation_config(path)
    chosen = loaded.figures if figures is None else _figures(figures, has_judge=loaded.judge is not None)
    if calibrating and "strength" not in chosen:
        chosen = (*chosen, "strength")
    given = {"prompts": data, "limit": limit, "figures": chosen}
    return loaded.model_copy(update={name: value for name, value in given.items() if value is not None})


def _figures(names: str, *, has_judge: bool) -> tuple[str, ...]:
    from meet_training.evaluation.evaluation_config import FIGURES

    if names == "all":  # of those that need nobody else
        return tuple(figure for figure in FIGURES if figure != "judge" or has_judge)
    chosen = () if names == "none" else tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in FIGURES:
            raise click.BadParameter(
                f"{name!r} is no figure; use {', '.join(FIGURES)}, all or none", param_hint="--figures"
            )
    return tuple(dict.fromkeys(chosen))
