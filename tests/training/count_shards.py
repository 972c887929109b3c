"""Run as a program by one of several processes: prints how much of a model's weights it holds, as JSON.

Arguments: a training configuration whose `speed.sharding` is `full`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from meet_training.config import load_config
from meet_training.data.forms import load_examples
from meet_training.stages.machine import is_sharded
from meet_training.stages.tune_model import model_groups
from meet_training.two_stages import Run


def main() -> None:
    config = load_config(Path(sys.argv[1]))
    run = Run(config, Path(config.base), load_examples(config))
    model = run.load_model(run.dtype)
    controls = run.attach(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    run.shard(model, controls)
    groups = model_groups(model, None, controls, run.schedule("stage2", run.config.stage2), run.config.stage2)
    own = {
        group.config.name: sum(p.to_local().numel() if is_sharded(p) else p.numel() for p in group.parameters)
        for group in groups
    }
    num_controls = {name: sum(p.numel() for p in controls.parameters_of(k)) for k, name in enumerate(controls.names)}
    print(json.dumps({"whole": whole - sum(num_controls.values()), "own": own, "controls": num_controls}))  # noqa: T201


if __name__ == "__main__":
    main()
