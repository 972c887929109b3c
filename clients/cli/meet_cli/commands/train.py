"""`meet train`: both stages to a bundle. Knows the words of the command line and nothing of training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meet_cli.arguments import split_arguments
from meet_cli.errors import CommandError
from meet_cli.extras import require
from meet_cli.figures import json_option, write_figures
from meet_cli.processes import is_main_process
from meet_cli.progress import Tell, duration, tell_step, tell_warning, telling

if TYPE_CHECKING:
    from meet_bundle import Bundle
    from meet_training.config import TrainConfig
    from meet_training.stages.optimise import TrainProgress


@click.command(
    short_help="Train a bundle: both stages, resumable.",
    epilog="Example: meet train examples/demo/train.yaml --stage1.epochs=3 --overwrite",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.yaml [--a.b=c ...]")
@click.option("--overwrite", is_flag=True, help="Replace the bundle that is already at the output.")
@json_option
def train(arguments: tuple[str, ...], overwrite: bool, json_file: Path | None) -> None:
    """Train what CONFIG.yaml describes and write the bundle that it names.

    Any field of the configuration can be set on the command line: --stage1.epochs=3. A run that was
    interrupted goes on where it stopped when the same command is given again.

    On several GPUs or machines: torchrun --nproc-per-node=NUM -m meet_cli train CONFIG.yaml
    """
    path, overrides = split_arguments(arguments, what="CONFIG.yaml")
    require("training", "meet train")
    from meet_training.config import load_config

    bundle, figures = train_with_progress(load_config(Path(path), overrides), overwrite=overwrite)
    if not is_main_process():
        return
    click.echo(f"{bundle.path}: {', '.join(p.name for p in bundle.manifest.preferences)}")
    click.echo(f"learning curves: {bundle.path / 'report' / 'training.svg'}")
    click.echo(f"serve it with: meet serve {bundle.path}")
    write_figures(json_file, figures)


def train_with_progress(config: TrainConfig, *, overwrite: bool = False) -> tuple[Bundle, dict[str, Any]]:
    """Trains, telling progress on stderr; returns the bundle, and figures of each stage for JSON.

    Raises CommandError where there is a bundle that may not be replaced, and MeetError as training does.
    """
    if config.output.exists() and not overwrite:
        raise CommandError(f"{config.output} exists; give --overwrite to replace it, or another --output=FOLDER")
    from transformers.utils import logging

    from meet_training.callbacks import Callback
    from meet_training.run import train as train_bundle
    from meet_training.stages.machine import leave

    logging.disable_progress_bar()  # its bars for loading and saving would break into ours
    last: dict[str, TrainProgress] = {}
    started = time.monotonic()
    with telling() as tell:

        class Telling(Callback):
            def on_phase(self, what: str) -> None:
                tell_step(what)

            def on_part(self, what: str, num_done: int, num_all: int) -> None:
                tell(what, num_done, num_all, "")

            def on_warning(self, what: str) -> None:
                tell_warning(what)

            def on_step(self, progress: TrainProgress) -> None:
                last[progress.stage] = progress
                _tell(tell, progress)

        bundle = train_bundle(config, replace=overwrite, callbacks=[Telling()])
    leave()
    stages = [
        {"stage": p.stage, "steps": p.num_steps, "loss": p.loss, "tokens_per_s": p.tokens_per_s} for p in last.values()
    ]
    return bundle, {"bundle": str(bundle.path), "seconds": time.monotonic() - started, "stages": stages}


def _tell(tell: Tell, progress: TrainProgress) -> None:
    words = f"loss {progress.loss:.3f}, {progress.tokens_per_s:.0f} tokens/s, {duration(progress.seconds_left)} left"
    tell(progress.stage, progress.step, progress.num_steps, words)
