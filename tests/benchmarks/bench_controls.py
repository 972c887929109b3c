"""What a choice of controls is worth, without sampling: trains a stage for each choice and compares held-out losses.

    python tests/benchmarks/bench_controls.py examples/demo/train.yaml \\
        --choice "controls={kind: soft_prompt};stage1.learning_rate=1e-2" --choice controls.rank=4

Every choice is a list of overrides of the configuration, as `meet train` takes them. A fifth of the prompts, by a hash
of their text, is never trained on. On its replies three figures are worked out, in nats per reply token, means over
controls: `own`, the loss of replies under their own control; `base`, without control; `other`, under the control of
the opposite. `margin`, other - own, says how far a control prefers its own side. With `--stage 2` stage 1 is trained
once, as configured, and every choice is one of stage 2 after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meet_training.base_model import resolve_base
from meet_training.config import TrainConfig, load_config
from meet_training.controls.control import ControlSet
from meet_training.data.batches import UNCONTROLLED, Item, passes
from meet_training.data.example import Example
from meet_training.data.forms import load_examples
from meet_training.data.render import Rendered, render_all
from meet_training.stages.layout import lay_out
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages.tune_controls import freeze_all_but_controls
from meet_training.two_stages import Run

HELD_OUT = 5  # one prompt in so many
MAX_HELD_OUT = 24  # examples of each preference
State = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--choice", action="append", default=[], help="overrides, separated by semicolons")
    parser.add_argument("--set", action="append", default=[], help="an override of every choice")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="which one the choices are about")
    parser.add_argument("--json", type=Path, help="append each choice's figures to this file, one line each")
    args = parser.parse_args(arguments)
    print(f"{'choice':60}  {'own':>6} {'base':>6} {'other':>6} {'margin':>6} {'params':>9} {'s':>5}")
    tuned = Held(load_config(args.config, args.set)).stage1() if args.stage == 2 else None
    for choice in args.choice or [""]:
        held = Held(load_config(args.config, [*args.set, *filter(None, choice.split(";"))]))
        figures = {"choice": choice or "as configured", "stage": args.stage, **held.measure(tuned)}
        print(
            f"{figures['choice']:60}  {figures['own']:6.3f} {figures['base']:6.3f} {figures['other']:6.3f} "
            f"{figures['margin']:6.3f} {figures['parameters']:9,d} {figures['seconds']:5.0f}",
            flush=True,
        )
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(figures) + "\n")


class Held:
    """A run on the prompts that are not held out, and what it made measured on the others."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        everything = load_examples(config.model_copy(update={"examples_per_preference": None}))
        limit = config.examples_per_preference
        trained = {label: [e for e in group if not held_out(e)][:limit] for label, group in everything.items()}
        self.kept = {label: [e for e in group if held_out(e)][:MAX_HELD_OUT] for label, group in everything.items()}
        self.run = Run(config, resolve_base(config.base), trained)

    def stage1(self) -> State:
        return self.run.stage1()

    def measure(self, tuned: State | None) -> dict[str, Any]:
        """Trains stage 1, or stage 2 from what another run's stage 1 tuned, and gives the figures of it."""
        run = self.run
        started = time.monotonic()
        if tuned is None:
            state = self.stage1()
            seconds = time.monotonic() - started
            model = run.load_model(run.dtype)
            controls = run.attach(model)
            controls.load_state(state)
        else:
            model, controls = run.stage2(tuned)
            seconds = time.monotonic() - started
        model.eval()
        freeze_all_but_controls(model, controls)
        rendered = render_all(self.kept, run.tokenizer, self.config.max_length)
        opposites = opposite_of(self.config)
        own, base, other = (
            mean_loss(run, model, controls, rendered, chosen)
            for chosen in (
                dict(enumerate(range(len(opposites)))),
                dict.fromkeys(range(len(opposites)), UNCONTROLLED),
                opposites,
            )
        )
        return {
            "own": own,
            "base": base,
            "other": other,
            "margin": other - own,
            "parameters": sum(p.numel() for p in controls.parameters_of(0)),
            "seconds": seconds,
            "held_out": {label: len(group) for label, group in rendered.items()},
        }


def held_out(example: Example) -> bool:
    text = json.dumps(example.messages, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % HELD_OUT == 0


def opposite_of(config: TrainConfig) -> dict[int, int]:
    names = list(config.preferences)
    return {k: names.index(said.opposite or name) for k, (name, said) in enumerate(config.preferences.items())}


@torch.no_grad()
def mean_loss(
    run: Run, model: Any, controls: ControlSet, rendered: dict[str, list[Rendered]], under: dict[int, int]
) -> float:
    """Mean over preferences of the loss per reply token, each under control `under[k]`, in nats."""
    means = []
    for k, group in enumerate(rendered.values()):
        total, count = 0.0, 0
        for some in passes([Item(under[k], r) for r in group], run.config.tokens_per_pass):
            batch = lay_out(some, controls.virtual_ids, run.pad_id, run.machine.device)
            with controls.applied(batch.token_controls):
                nll = reply_nll(model, batch)
            total, count = total + float(nll.sum()), count + len(nll)
        means.append(total / count)
    return sum(means) / len(means)


if __name__ == "__main__":
    main()
