"""The mechanics of `make bench-train` on a tiny model: same tokens, same evaluator, shape of the figures. No speed."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench_train(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("bench_train")
    for name in ("bench_train", "train_jobs", "train_switches", "train_evaluator"):
        sys.modules.pop(name, None)


@pytest.fixture
def bench(bench_train: Any, tiny_base: Path, preference_file: Path, tmp_path: Path) -> Any:
    config = {
        "name": "tiny",
        "base": str(tiny_base),
        "output": str(tmp_path / "bundle"),
        "data": [{"path": str(preference_file)}],
        "preferences": {"short": {"axis": "length"}, "long": {"axis": "length"}},
        "precision": "float32",
        "stage1": {"epochs": 1, "batch_size": 2, "learning_rate": 0.02},
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return bench_train.Bench(path, ("examples_per_preference=2",), scratch)


@pytest.mark.filterwarnings("ignore:::(trl|transformers|peft|accelerate|torch|datasets)")
def test_both_sides_train_on_the_same_tokens_and_save_what_peft_reads(
    bench_train: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 in a process of its own, as always; the rest in this one, which has imported most of it."""
    import train_evaluator
    import train_jobs

    in_its_own = bench_train.ask

    def ask(script: str, order: dict[str, Any]) -> dict[str, Any]:
        if script == "train_evaluator.py":
            return train_evaluator.losses(**order)
        if order["side"] == "trl":
            return asdict(train_jobs.trl(train_jobs.Job(**order)))
        answer: dict[str, Any] = in_its_own(script, order)
        return answer

    monkeypatch.setattr(bench_train, "ask", ask)
    figures = bench_train.sides(bench, repeats=2)
    ours, trl = (figures["runs"][side][0]["done"] for side in ("stage1", "trl"))
    assert figures["runs"]["shared_a"][0]["done"]["seen"] == ours["seen"]
    assert ours["seen"] == trl["seen"]
    assert ours["num_supervised"] == trl["num_supervised"] > 0
    assert ours["num_tokens"] == trl["num_tokens"] > ours["num_supervised"]
    assert figures["stage1"]["loss"].keys() == figures["trl"]["loss"].keys() == {"trained", "held_out"}
    assert figures["ratios"].keys() == {"rate", "loop_rate", "peak_mib", "loss_trained", "loss_held_out"}
    assert figures["holds"].keys() == {"speed", "memory", "loss"}
    json.dumps(figures)


def test_a_bound_that_is_missed_is_said_so(bench_train: Any) -> None:
    def side(rate: float, peak: float, loss: float) -> dict[str, Any]:
        return {"rate": rate, "loop_rate": rate, "peak_mib": peak, "loss": {"trained": loss, "held_out": loss}}

    trl = side(100, 1000, 1.0)
    assert bench_train.compared({"stage1": side(150, 1000, 1.01), "trl": trl})["holds"] == {
        "speed": True,
        "memory": True,
        "loss": True,
    }
    assert bench_train.compared({"stage1": side(149, 1001, 1.02), "trl": trl})["holds"] == {
        "speed": False,
        "memory": False,
        "loss": False,
    }


def test_other_tokens_have_another_digest(bench_train: Any) -> None:
    import train_jobs

    one = {"a": [((1, 2), (False, True)), ((3,), (True,))]}
    assert train_jobs.digest(one.items()) == train_jobs.digest({"a": one["a"][::-1]}.items())
    for other in ({"b": one["a"]}, {"a": one["a"][:1]}, {"a": [((1, 2), (True, True)), ((3,), (True,))]}):
        assert train_jobs.digest(other.items()) != train_jobs.digest(one.items())


def test_the_evaluator_gives_the_loss_of_supervised_tokens_by_hand(
    bench_train: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """Under an adapter that changes nothing, that is the base's own."""
    import torch
    import train_evaluator
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "a"
    )
    found = train_evaluator.losses(str(tiny_base), str(tmp_path), {"a": [([5, 6, 7, 8, 9], 3)]})
    assert found == {"a": pytest.approx(-float(logprobs[2, 8] + logprobs[3, 9]) / 2, abs=1e-5)}


def test_every_switch_leaves_the_same_tokens_and_nothing_replaced(
    bench_train: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where a replacement that stayed would be seen."""
    import train_jobs
    import train_switches

    from meet_training.stages import optimise, packed_attention, reply_nll

    def replaceable() -> list[Any]:
        return [
            optimise.passes,
            optimise.reply_nll,
            reply_nll._FrozenHeadNll,
            reply_nll._TILE,
            packed_attention.LONGEST,
        ]

    before = replaceable()
    seen = set()
    for overrides, replaced in train_switches.SWITCHES.values():
        job = bench.job("shared_a", more=overrides, without=replaced)
        seen.add(train_jobs.stage1(job).seen)
        assert sorted(path.name for path in Path(job.output).iterdir()) == ["long", "short"]
    assert len(seen) == 1
    assert replaceable() == before


def test_the_row_of_soft_prompts_trains_them_with_and_without_the_cache(
    bench_train: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_jobs

    jobs = []

    def ask(script: str, order: dict[str, Any]) -> dict[str, Any]:
        jobs.append(order)
        return asdict(train_jobs.stage1(train_jobs.Job(**order)))

    monkeypatch.setattr(bench_train, "ask", ask)
    assert bench_train.prompt_cache(bench, repeats=2).keys() == {"rate", "loop_rate", "peak_mib"}
    assert ["speed.prompt_cache_mib=0" in job["overrides"] for job in jobs] == [True, False, False, True]
    assert all((Path(job["output"]) / "short" / "soft_prompt.safetensors").is_file() for job in jobs)
