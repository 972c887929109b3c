"""Stage 1 beside TRL's SFTTrainer with PEFT: the same controls, examples, model and precision, in turn.

    python tests/benchmarks/bench_train.py [--parts NAME ...] [--json FILE] [--examples N] [--repeats R] [--quick]

Every job is a process of its own, timed from its start to its saved adapters. TRL trains one control after another in
one process, with the settings of `TRL`. Both sides' adapters are evaluated by plain transformers and PEFT. Where a
bound is missed the exit status is 1. The parts: `sides` compares; `without` switches off each source of stage 1's
speed in turn; `prompt-cache` is about soft prompts. Not by default: `rates` trains both sides at each learning rate
and compares held-out losses; `search` times TRL's settings. The constants below are what those two found best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from train_jobs import Done, Job  # noqa: E402 - the folder is no package
from train_switches import SWITCHES  # noqa: E402

CONFIG = HERE.parent.parent / "examples" / "demo" / "train.yaml"

# Two rows at a time, twice a step, grouped by length, adapters in bfloat16: of what `--parts search` timed on two cores
# without AMX the quickest that has the batches of stage 1; docs/EXPERIMENTS.md.
TRL: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "train_sampling_strategy": "group_by_length",
    "adapters_in_float32": False,
    "attention": "eager",
    "learning_rate": 4e-3,
}
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
FOUR_ROWS: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
SEARCH: tuple[dict[str, Any], ...] = (
    {},
    {"attention": "sdpa"},
    {"adapters_in_float32": True},
    {"adapters_in_float32": True, "bf16": True},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "train_sampling_strategy": "random"},
    FOUR_ROWS,
    {**FOUR_ROWS, "attention": "sdpa"},
    {**FOUR_ROWS, "padding_free": True, "attention": "sdpa"},
    {**FOUR_ROWS, "adapters_in_float32": True},
    {**FOUR_ROWS, "adapters_in_float32": True, "bf16": True},
    {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
)
# What PEFT trains: an A of each control's own. `shared_a` is stage 1 as it is by default.
STAGE1 = {"stage1": ("controls.share_a=false", "stage1.learning_rate=4e-3"), "shared_a": ("stage1.learning_rate=4e-3",)}
SPEED_BOUND, MEMORY_BOUND, LOSS_BOUND = 1.5, 1.0, 1.01


@dataclass(frozen=True)
class Timed:
    """One job: supervised tokens per second over the whole job and over its training loops, and its peak memory."""

    rate: float
    loop_rate: float
    peak_mib: float
    done: Done


@dataclass(frozen=True)
class Bench:
    """What all jobs have in common."""

    config: Path
    overrides: tuple[str, ...]
    scratch: Path

    def job(self, side: str, *, more: Sequence[str] = (), without: Sequence[str] = (), **options: Any) -> Job:
        return Job(
            side="trl" if side == "trl" else "stage1",
            config=str(self.config),
            output=tempfile.mkdtemp(dir=self.scratch),
            overrides=(*self.overrides, *STAGE1.get(side, ()), *more),
            trl={**(TRL if side == "trl" else {}), **options},
            without=tuple(without),
        )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--examples", type=int, default=32, help="of each preference")
    parser.add_argument("--repeats", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=BY_DEFAULT, help="%(default)s by default")
    parser.add_argument("--quick", action="store_true", help="no bound is checked")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        overrides = (f"examples_per_preference={options.examples}", "stage1.epochs=1")
        bench = Bench(CONFIG, overrides, Path(scratch))
        report = {name.replace("-", "_"): PARTS[name](bench, options.repeats) for name in options.parts}
    if options.json:
        figures = {**machine(), "examples": options.examples, **report}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = "sides" in report and not all(report["sides"]["holds"].values())
    return 1 if missed and not options.quick else 0


def sides(bench: Bench, repeats: int) -> dict[str, Any]:
    """Both sides in turn; speed, memory and loss, and whether the bounds hold. Beside them, stage 1 with one A."""
    timed: dict[str, list[Timed]] = {"stage1": [], "shared_a": [], "trl": []}
    jobs: dict[str, Job] = {}
    for index in range(repeats):
        for side in list(timed) if index % 2 else list(timed)[::-1]:
            jobs[side] = bench.job(side)  # a folder of its own each time
            timed[side].append(run(jobs[side]))
            print(line(side, timed[side][-1]), flush=True)
    seen = {each.done.seen for many in timed.values() for each in many}
    if len(seen) != 1:
        raise SystemExit("the two sides did not train on the same tokens")
    loss = {side: evaluate(bench, jobs[side]) for side in timed}
    figures = {side: {**medians(many), "loss": loss[side]} for side, many in timed.items()}
    shared = compared({**figures, "stage1": figures["shared_a"]}, "stage 1 with one A")
    runs = {side: [asdict(each) for each in many] for side, many in timed.items()}
    return {**figures, **compared(figures), "shared_a_compared": shared, "runs": runs}


def medians(many: Sequence[Timed]) -> dict[str, float]:
    """Of every figure of several jobs."""
    return {name: statistics.median(getattr(each, name) for each in many) for name in ("rate", "loop_rate", "peak_mib")}


def compared(figures: dict[str, Any], what: str = "stage 1") -> dict[str, Any]:
    """Our figures over TRL's, and which bounds hold."""
    ours, trl = figures["stage1"], figures["trl"]
    ratios = {name: round(ours[name] / trl[name], 4) for name in ("rate", "loop_rate", "peak_mib")}
    ratios |= {f"loss_{on}": round(ours["loss"][on] / trl["loss"][on], 4) for on in ours["loss"]}
    holds = {
        "speed": ratios["rate"] >= SPEED_BOUND,
        "memory": ratios["peak_mib"] <= MEMORY_BOUND,
        "loss": all(ratios[name] <= LOSS_BOUND for name in ratios if name.startswith("loss_")),
    }
    for name, ratio in ratios.items():
        print(f"{what} / TRL, {name}: {ratio:.3f}")
    print(", ".join(f"{name} bound {'holds' if held else 'BROKEN'}" for name, held in holds.items()), flush=True)
    return {"ratios": ratios, "holds": holds}


def prompt_cache(bench: Bench, repeats: int) -> dict[str, float]:
    """Soft prompts after the prompt, with prompts computed once for all controls and epochs, over without."""
    soft = ("controls={kind: soft_prompt, placement: after_prompt}", "stage1.epochs=2", "stage1.learning_rate=1e-2")
    kept, anew = ((*soft, f"speed.prompt_cache_mib={mib}") for mib in (2048, 0))
    ratios = in_turn(bench, repeats, ({"more": kept}, {"more": anew}))
    print(f"soft prompts, with the prompt cache / without: {json.dumps(ratios)}", flush=True)
    return ratios


def without_each(bench: Bench, repeats: int) -> list[dict[str, Any]]:
    """Stage 1 with each source of its speed switched off, in turn with all of them on."""
    rows = []
    for name, (overrides, replaced) in SWITCHES.items():
        ratios = in_turn(bench, repeats, ({"more": overrides, "without": replaced}, {}))
        rows.append({"without": name, **ratios})
        print(
            f"without {name}: {ratios['rate']:.3f} of the speed over the whole job, {ratios['loop_rate']:.3f} in the "
            f"loop, {ratios['peak_mib']:.3f} of the memory",
            flush=True,
        )
    return rows


def in_turn(bench: Bench, repeats: int, two: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, float]:
    """Medians of the first kind of job of stage 1 over those of the second."""
    timed: tuple[list[Timed], list[Timed]] = ([], [])
    for index in range(repeats):
        for which in (0, 1) if index % 2 else (1, 0):
            timed[which].append(run(bench.job("shared_a", **two[which])))
    if len({each.done.seen for many in timed for each in many}) != 1:
        raise SystemExit(f"not the same tokens: {two}")
    first, second = (medians(many) for many in timed)
    return {name: round(first[name] / second[name], 3) for name in first}


def rates(bench: Bench, _repeats: int) -> list[dict[str, Any]]:
    """Both sides once at each learning rate of RATES: loss on what was trained on and on held-out prompts."""
    rows = []
    for side in ("stage1", "shared_a", "trl"):
        for rate in RATES:
            own: dict[str, Any] = {"learning_rate": rate} if side == "trl" else {}
            job = bench.job(side, more=(f"stage1.learning_rate={rate}",), **own)
            run(job)
            rows.append({"side": side, "learning_rate": rate, **evaluate(bench, job)})
            print(f"{side} at {rate}: " + json.dumps(rows[-1]), flush=True)
    return rows


def search(bench: Bench, _repeats: int) -> list[dict[str, Any]]:
    """TRL under every setting of SEARCH, once."""
    found = []
    for settings in SEARCH:
        timed = run(bench.job("trl", **settings))
        found.append({"settings": {**TRL, **settings}, **medians([timed])})
        print(line(f"trl {json.dumps(settings)}", timed), flush=True)
    return found


PARTS: dict[str, Callable[[Bench, int], Any]] = {
    "sides": sides,
    "without": without_each,
    "prompt-cache": prompt_cache,
    "rates": rates,
    "search": search,
}
BY_DEFAULT = ("sides", "without", "prompt-cache")


def run(job: Job) -> Timed:
    """One job in a process of its own."""
    started = time.time()
    done = Done(**ask("train_jobs.py", asdict(job)))
    rate = done.num_supervised / (done.saved_at - started)
    return Timed(round(rate, 1), round(done.num_supervised / done.loop_s, 1), round(done.peak_mib), done)


def line(name: str, timed: Timed) -> str:
    return (
        f"{name}: {timed.rate:.1f} supervised tokens/s over the whole job, {timed.loop_rate:.1f} in the loop, "
        f"peak {timed.peak_mib:.0f} MiB"
    )


def evaluate(bench: Bench, job: Job, num_held_out: int = 16) -> dict[str, float]:
    """Loss on the examples trained on, and on others whose prompts no control was trained on: means over controls."""
    from transformers import AutoTokenizer

    from meet_training.base_model import resolve_base
    from meet_training.config import load_config
    from meet_training.data.forms import load_examples
    from meet_training.data.render import render_all

    config = load_config(bench.config, bench.overrides)
    folder = resolve_base(config.base)
    trained = load_examples(config)
    known = {str(example.messages) for group in trained.values() for example in group}
    every = load_examples(config.model_copy(update={"examples_per_preference": None}))
    others = {name: [e for e in group if str(e.messages) not in known][:num_held_out] for name, group in every.items()}
    means = {}
    for on, examples in (("trained", trained), ("held_out", others)):
        rendered = render_all(examples, AutoTokenizer.from_pretrained(folder), config.max_length)
        ids = {name: [(list(r.ids), len(r.prompt_ids)) for r in group] for name, group in rendered.items()}
        losses = ask("train_evaluator.py", {"base": str(folder), "adapters": job.output, "examples": ids})
        means[on] = sum(losses.values()) / len(losses)
    return means


def ask(script: str, order: dict[str, Any]) -> dict[str, Any]:
    """Runs a script of this folder with an order on its standard input; its last line is the answer."""
    command = [sys.executable, str(HERE / script)]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "packages": packages}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
