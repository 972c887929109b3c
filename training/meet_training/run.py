"""The whole of training on one screen: data -> stage 1 -> stage 2 -> bundle, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from meet_bundle import Bundle, BundleError, clean_up, open_bundle
from meet_training.base_model import resolve_base
from meet_training.callbacks import Callback, Callbacks
from meet_training.config import TrainConfig
from meet_training.data import forms
from meet_training.export import export
from meet_training.stages.machine import Machine
from meet_training.trackers import Trackers
from meet_training.two_stages import Run


def train(config: TrainConfig, *, replace: bool = False, callbacks: Sequence[Callback] = ()) -> Bundle:
    """Trains what the configuration says and writes the bundle; goes on where a killed run of the same stood.

    Raises TrainingError or BundleError before any work where the configuration, the data, the base or the
    output cannot be used. Nothing appears at `config.output` until the whole bundle is there. Under `accelerate
    launch` or `torchrun` every process calls this and returns the same bundle; callbacks hear the main process alone.
    """
    machine = Machine.join(config.device)
    with machine.together():
        trackers = [Trackers(config)] if config.trackers and machine.is_main else []
    told = Callbacks([*trackers, *callbacks] if machine.is_main else ())
    with machine.main_first():
        if machine.is_main:
            clean_up(config.output)
        if config.output.exists() and not replace:
            raise BundleError(f"output: {config.output} exists; choose another output or allow it to be replaced")
        folder = resolve_base(config.base, on_step=told.on_phase)
    with machine.together():
        run = Run(config, folder, forms.load_examples(config), told, machine)
    machine.check_alike("configuration, data and base", run.checkpoints.key)
    with ExitStack() as alone:
        with machine.together():
            if machine.is_main:
                alone.enter_context(run.checkpoints.alone())
        told.on_start(run.config)
        trained = run.both_stages()
        with machine.together():
            if machine.is_main:
                told.on_phase(f"writing {config.output}")
                export(trained, run.config, replace=replace)
                run.checkpoints.remove()
    bundle = open_bundle(config.output)
    told.on_bundle(bundle)
    return bundle
