"""One training job in a process of its own, for `bench_train.py`: reads a `Job` as JSON, prints a `Done` as JSON.

    python tests/benchmarks/train_jobs.py < job.json

`stage1` is MEET's stage 1; `trl` is TRL's SFTTrainer with PEFT, one run per control. Both read the same rendered
examples; `Done.seen` is a digest of what each really trained on, and must be the same. Knows nothing of bounds.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Job:
    """What to train. `overrides` are of the configuration; `trl` are SFTConfig's fields, `adapters_in_float32` and
    `attention`;
    `without` names sources of speed to switch off (`train_switches.py`)."""

    side: str
    config: str
    output: str
    overrides: tuple[str, ...] = ()
    trl: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """What a job took. `saved_at` is a Unix time, `loop_s` the training loops alone, `peak_mib` of the process.
    `seen`, `num_supervised` and `num_tokens` are of what was trained on, over all controls and epochs."""

    saved_at: float
    loop_s: float
    peak_mib: float
    seen: str
    num_supervised: int
    num_tokens: int


Seen = tuple[tuple[int, ...], tuple[bool, ...]]
"""Ids of one example, and which of them are supervised."""


def stage1(job: Job) -> Done:
    """All controls in one pass over one frozen model."""
    from train_switches import switched_off

    from meet_training.base_model import resolve_base
    from meet_training.config import load_config
    from meet_training.data.forms import load_examples
    from meet_training.data.render import Rendered
    from meet_training.two_stages import Run

    config = load_config(Path(job.config), job.overrides)
    examples = load_examples(config)

    class Stage1(Run):
        """Keeps its controls, which the run itself hands on as a state."""

        def attach(self, model: Any) -> Any:
            self.controls = super().attach(model)
            return self.controls

    def seen(rendered: Rendered) -> Seen:
        own = rendered.mask or (True,) * len(rendered.reply_ids)
        return rendered.ids, (False,) * len(rendered.prompt_ids) + own

    loop_s = 0.0
    trained_on: dict[str, list[Seen]] = {}
    with switched_off(job.without) as alone:
        for names in [[name] for name in examples] if alone else [list(examples)]:
            own = config.model_copy(update={"preferences": {name: config.preferences[name] for name in names}})
            run = Stage1(own, resolve_base(config.base), {name: examples[name] for name in names})
            run.stage1()
            loop_s += run.record.seconds["stage1"]
            for control, name in enumerate(names):
                run.controls.save(control, Path(job.output) / name)
                schedule = run.schedule("stage1", run.config.stage1)
                trained_on[name] = [seen(r) for batch in schedule.batches[control] for r in batch]
    return done(loop_s, trained_on)


def trl(job: Job) -> Done:
    """TRL's SFTTrainer, one run per control, all in this process so that imports count once."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from meet_training.base_model import resolve_base
    from meet_training.config import load_config
    from meet_training.data.forms import load_examples
    from meet_training.data.render import render_all
    from meet_training.stages.machine import choose_dtype

    config = load_config(Path(job.config), job.overrides).resolved()
    folder = resolve_base(config.base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = choose_dtype(config.precision, torch.device("cpu"))
    options = dict(job.trl)
    in_float32, attention = options.pop("adapters_in_float32", True), options.pop("attention", "sdpa")
    settings = SFTConfig(**{**trl_settings(config.stage1.epochs, config.seed), "output_dir": job.output, **options})
    loop_s = 0.0
    trained_on: dict[str, list[Seen]] = {}
    for name, group in render_all(load_examples(config), tokenizer, config.max_length).items():
        rows = [{"input_ids": r.ids, "labels": [-100] * len(r.prompt_ids) + list(r.reply_ids)} for r in group]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        lora = LoraConfig(
            r=config.controls.rank, lora_alpha=config.controls.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = SFTTrainer(
            model=get_peft_model(model, lora, autocast_adapter_dtype=in_float32),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        since = time.monotonic()
        trainer.train()
        loop_s += time.monotonic() - since
        trainer.model.save_pretrained(Path(job.output) / name)
        kept = list(trainer.train_dataset) * int(config.stage1.epochs)
        trained_on[name] = [(tuple(r["input_ids"]), tuple(t >= 0 for t in r["labels"])) for r in kept]
    return done(loop_s, trained_on)


def trl_settings(epochs: float, seed: int) -> dict[str, Any]:
    """What every TRL run here has; all but epochs and seed only save time."""
    return {
        "num_train_epochs": epochs,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,  # the model itself is in bfloat16: no autocast
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def done(loop_s: float, trained_on: dict[str, list[Seen]]) -> Done:
    """The report of a job whose adapters have just been saved."""
    saved_at = time.time()
    every = [example for group in trained_on.values() for example in group]
    return Done(
        saved_at=saved_at,
        loop_s=loop_s,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        seen=digest(trained_on.items()),
        num_supervised=sum(sum(supervised) for _, supervised in every),
        num_tokens=sum(len(ids) for ids, _ in every),
    )


def digest(trained_on: Iterable[tuple[str, list[Seen]]]) -> str:
    """Of examples by control, whatever their order."""
    listed = [[name, sorted([list(ids), list(supervised)] for ids, supervised in group)] for name, group in trained_on]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


SIDES = {"stage1": stage1, "trl": trl}


if __name__ == "__main__":
    the_job = Job(**json.load(sys.stdin))
    sys.stdout.write(json.dumps(asdict(SIDES[the_job.side](the_job))) + "\n")
