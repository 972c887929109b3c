"""`meet demo`: from nothing to a served bundle, or to its figures. Knows which files make the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meet_cli.asking import Servers
from meet_cli.commands.train import train_with_progress
from meet_cli.errors import CommandError
from meet_cli.evaluating import evaluate_bundle, refuse_failures, show
from meet_cli.extras import require, require_engine
from meet_cli.figures import json_option, write_figures
from meet_cli.local_server import meet_server_command, running_server
from meet_cli.phases import Phases
from meet_cli.progress import tell_step

if TYPE_CHECKING:
    from meet_bundle import Bundle, Manifest
    from meet_training.evaluation.evaluation_config import EvaluationConfig

CONFIG = Path("examples/demo/train.yaml")
EVALUATION = "evaluation.yaml"
"""Stands beside the training configuration."""


@click.command(short_help="Make the demo bundle, then serve or measure it.", epilog="Example: meet demo --once")
@click.option("--once", is_flag=True, help="Measure whether the controls hold, print the figures, and end.")
@click.option(
    "--bundle", default="bundles/demo", show_default=True, type=click.Path(path_type=Path), help="Its folder."
)
@click.option("--config", default=CONFIG, show_default=True, type=click.Path(path_type=Path), help="How it is trained.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="TCP port.")
@json_option
def demo(once: bool, bundle: Path, config: Path, port: int, json_file: Path | None) -> None:
    """Make the demo bundle if it is missing, serve it and say where to look.

    With --once it is measured in place of being served: exits 0 if its controls hold on as many prompts as
    evaluation.yaml beside the training configuration asks for, 1 if not.
    """
    if json_file is not None and not once:
        raise click.UsageError("--json needs --once: nothing is measured without it")
    require("training", "meet demo")
    require_engine("meet demo")
    # Read first, so that no training is wasted on a file that is not there.
    evaluation = _evaluation_config(config.parent / EVALUATION) if once else None
    phases = Phases()
    with phases.timed("checking" if bundle.exists() else "training"):
        opened = _open_or_train(bundle, config)
    if evaluation is None:
        _serve(opened, port, phases)
        return
    evaluated = evaluate_bundle(opened, evaluation, Servers(), phases)
    show(evaluated)
    click.echo(f"time spent: {phases}")
    write_figures(json_file, {**evaluated.data, "seconds": phases.seconds})
    refuse_failures(evaluated)
    click.echo("every control holds as often as it should")


def _evaluation_config(path: Path) -> EvaluationConfig:
    from meet_training.evaluation.evaluation_config import load_evaluation_config

    if not path.is_file():
        raise CommandError(f"{path} is not there: run this in a checkout of MEET, or give --config train.yaml")
    return load_evaluation_config(path)


def _open_or_train(folder: Path, config: Path) -> Bundle:
    from meet_bundle import open_bundle
    from meet_training.config import load_config

    if folder.exists():
        tell_step(f"{folder} is there: checking it")
        return open_bundle(folder)
    if not config.is_file():
        raise CommandError(f"{config} is not there: run this in a checkout of MEET, or give --config train.yaml")
    tell_step(f"making {folder} as {config} says")
    loaded = load_config(config).model_copy(update={"output": folder})
    bundle, _ = train_with_progress(loaded)
    return bundle


def _serve(bundle: Bundle, port: int, phases: Phases) -> None:
    command = meet_server_command(bundle.path, port)
    tell_step(f"starting the server for {bundle.path}")
    started = time.monotonic()
    with running_server(command, port, what=f"the server for {bundle.path}") as server:
        phases.seconds["start of the server"] = time.monotonic() - started
        click.echo(f"time spent: {phases}")
        for line in where_to_look(server.url, bundle.manifest):
            click.echo(line)
        server.wait()
        raise CommandError("the server stopped by itself")


def where_to_look(url: str, manifest: Manifest) -> Sequence[str]:
    """What to tell people who want to try the server at `url`."""
    name = manifest.preferences[0].name
    body = f'{{"model": "{manifest.name}", "preference": "{name}", "max_tokens": 200, '
    body += '"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
    return (
        f"serving {manifest.name} at {url} until Ctrl-C; its preferences: {url}/v1/preferences",
        f"  meet chat --url {url} -p {name} 'Why is the sky blue?'",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
    )
