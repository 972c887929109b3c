"""`meet data`: look at preference data, or make it. Knows how to get a model served, nothing of data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meet_cli.arguments import split_arguments
from meet_cli.ending import run_async
from meet_cli.extras import require, require_engine
from meet_cli.figures import json_option, write_figures
from meet_cli.local_server import free_port, plain_server_command, running_server
from meet_cli.progress import duration, tell_step, telling

if TYPE_CHECKING:
    from meet_training.data.generate import Progress, Report
    from meet_training.data.generate_config import GenerateConfig


@click.group(
    short_help="Look at preference data, or make it.",
    epilog="Example: meet data inspect examples/demo/train.yaml",
)
def data() -> None:
    """Look at preference data, or make it."""


@data.command(
    short_help="Show form, labels, lengths, duplicates, what is supervised.",
    epilog="""\b
Example: meet data inspect examples/demo/train.yaml --test examples/demo/prompts.test.jsonl
         meet data inspect pairs.jsonl.gz --base smollm2-135m --max-length 512
         meet data inspect data.csv --columns.prompt=question --columns.reply=answer --json found.json
         meet data inspect OWNER/NAME --split=test
""",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="DATA [--a.b=c ...]")
@click.option(
    "--base", metavar="MODEL", help="Measure in this model's tokens; of a configuration, in place of its own."
)
@click.option("--max-length", type=click.IntRange(min=1), metavar="TOKENS", help="Count examples that are longer.")
@click.option(
    "--test",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Count how many prompts of FILE stand in the data.",
)
@json_option
def inspect(
    arguments: tuple[str, ...], base: str | None, max_length: int | None, test: Path | None, json_file: Path | None
) -> None:
    """Read DATA once and show what is in it: a training configuration, a data file, or a data set of the hub.

    Its form is recognised by its columns. Where that is wrong, or columns have other names, the fields of a data
    set are set on the command line as a configuration would set them: --form=pairwise, --columns.prompt=question.
    """
    source, overrides = split_arguments(arguments, what="DATA")
    require("training", "meet data inspect")
    from meet_cli.inspecting import asked_of, inspect_with_progress, show

    found = inspect_with_progress(asked_of(source, overrides, base, max_length), test)
    show(found)
    write_figures(json_file, found.model_dump(mode="json"))


@data.command(
    short_help="Sample replies to your prompts, and keep the best.",
    epilog="Example: meet data generate examples/demo/generate.yaml --json made.json -- --max-model-len 2048",
)
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.yaml")
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
@json_option
def generate(config: Path, engine_args: tuple[str, ...], json_file: Path | None) -> None:
    """Sample replies to the prompts that CONFIG.yaml names and write the best of each preference.

    The model that it names is served here for as long as it takes, with the engine arguments that follow
    `--`; where it has a base_url, that endpoint is asked instead. A run that was interrupted goes on where
    it stopped when the same command is given again.
    """
    require("training", "meet data generate")
    from meet_training.data.generate_config import load_generate_config

    loaded = load_generate_config(config)
    if loaded.base_url is not None and engine_args:
        raise click.UsageError("engine arguments are of no use where the configuration has a base_url")
    with _endpoint(loaded, engine_args) as base_url:
        report = _generate(loaded, base_url)
    click.echo(report.table())
    click.echo(f"{loaded.output}: {report.rows} rows")
    write_figures(json_file, report.model_dump(mode="json"))


@contextmanager
def _endpoint(config: GenerateConfig, engine_args: tuple[str, ...]) -> Iterator[str | None]:
    """Base URL of the endpoint that the configuration names, or of a server of our own for its model.

    None where every sample is kept already, so that nobody need be asked.
    """
    from meet_training.data.generate import num_missing

    if config.base_url is not None or not num_missing(config):
        yield config.base_url
        return
    require_engine("meet data generate, without a base_url in its configuration,")
    from meet_training.base_model import resolve_base

    model, port = resolve_base(config.model, on_step=tell_step), free_port()
    command = plain_server_command(model, config.model, port, engine_args)
    tell_step(f"starting a server for {config.model}")
    with running_server(command, port, what=f"the server for {config.model}") as server:
        yield f"{server.url}/v1"


def _generate(config: GenerateConfig, base_url: str | None) -> Report:
    from meet_training.data.generate import generate as generate_data

    with telling() as tell:

        def on_progress(progress: Progress) -> None:
            tell("requests", progress.num_done, progress.num_requests, _words(progress))

        return run_async(generate_data(config, base_url, progress=on_progress))


def _words(progress: Progress) -> str:
    rate = progress.num_tokens / progress.elapsed_s if progress.elapsed_s else 0.0
    return f"{rate:.0f} tokens/s, {duration(progress.elapsed_s)}"
