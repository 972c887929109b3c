"""Every kind of control, stage and objective to a bundle, on a tiny model: what moves, what stays, what is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from meet_bundle import Bundle
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.controls.trained import LoraControl, SoftPromptControl, load_controls, mix
from meet_training.data.forms import Example, load_examples
from meet_training.errors import TrainingError
from meet_training.run import train
from meet_training.stages.optimise import TrainProgress
from meet_training.stages.prompt_cache import PromptCache
from meet_training.stages_config import ObjectiveConfig
from meet_training.two_stages import Run

MakeConfig = Callable[..., TrainConfig]


def base_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32).state_dict()


def bundle_weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bundle.model_path, dtype=torch.float32).state_dict()


def probes_hold(bundle: Bundle) -> None:
    """Each probe is what plain transformers, and PEFT, make of the exported files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundle.model_path, dtype=torch.float32)
    controls = load_controls(bundle)
    num_tokens = min((p.first_token_id for p in bundle.manifest.preferences if p.first_token_id), default=None)
    for preference in bundle.manifest.preferences:
        probe, control = preference.probe, controls[preference.name]
        prompt, reply = probe.token_ids[: probe.start], probe.token_ids[probe.start :]
        with control.applied(model) as controlled, torch.no_grad():
            ids = [*control.prompt(prompt), *reply]
            logits = controlled(torch.tensor([ids])).logits[0, -len(reply) - 1 : -1, :num_tokens]
        found = logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0].tolist()
        assert found == pytest.approx(probe.controlled, abs=1e-4)
        assert probe.controlled != pytest.approx(probe.uncontrolled, abs=1e-3)


KINDS: dict[str, dict[str, Any]] = {
    "shared A": {"kind": "lora", "rank": 4},
    "own A": {"kind": "lora", "rank": 4, "share_a": False},
    "some layers": {"kind": "lora", "target_modules": ["q_proj", "down_proj"]},
    "after": {"kind": "soft_prompt", "num_virtual_tokens": 4},
    "before": {"kind": "soft_prompt", "num_virtual_tokens": 3, "placement": "before_prompt", "start": "vocabulary"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_stages_make_a_bundle_whose_probes_are_true(make_config: MakeConfig, kind: str) -> None:
    bundle = train(make_config(controls=KINDS[kind]))
    probes_hold(bundle)
    manifest = bundle.manifest
    described = manifest.controls.model_dump()
    assert {key: described[key] for key in described.keys() & KINDS[kind].keys() if key != "target_modules"} == {
        key: KINDS[kind][key] for key in described.keys() & KINDS[kind].keys() if key != "target_modules"
    }
    assert manifest.made["config"]["stage1"]["learning_rate"] == 0.02
    if kind == "own A":
        short, long = load_controls(bundle).values()
        assert isinstance(short, LoraControl)
        assert isinstance(long, LoraControl)
        assert not any(torch.equal(a, long.factors[layer][0]) for layer, (a, _) in short.factors.items())
        assert not described["shared_a"]


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_alone_leaves_the_base_as_it_is(make_config: MakeConfig, kind: str) -> None:
    config = make_config(controls=KINDS[kind], stage2={"epochs": 0})
    bundle = train(config)
    probes_hold(bundle)
    found = bundle_weights(bundle)
    for name, tensor in base_weights(config).items():
        assert torch.equal(found[name][: len(tensor)], tensor), name


@pytest.mark.parametrize("kind", ["shared A", "after"])
def test_the_generation_configuration_of_the_base_is_kept_as_it_is(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path, kind: str
) -> None:
    """Transformers reads one with a temperature and no `do_sample`, and refuses to save it."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    file = base / "generation_config.json"
    own = json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.9}
    file.write_text(json.dumps(own))
    bundle = train(make_config(base=str(base), stage2={"epochs": 0}, controls=KINDS[kind]))
    kept = json.loads((bundle.model_path / "generation_config.json").read_text())
    more = {"suppress_tokens"} if kind == "after" else set()
    assert kept.keys() - own.keys() == more
    assert {name: kept[name] for name in own} == own


@pytest.mark.parametrize("kind", ["shared A", "own A", "after", "before"])
def test_stage_2_under_frozen_controls_leaves_every_control_as_stage_1_left_it(
    make_config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    alone = train(make_config(controls=KINDS[kind], stage2={"epochs": 0}, output=tmp_path / "alone"))
    frozen = {"epochs": 1, "batch_size": 2, "learning_rate": 0.001, "controls": "frozen"}
    config = make_config(controls=KINDS[kind], stage2=frozen, output=tmp_path / "frozen")
    both = train(config)
    for name in ("short", "long"):
        (file,) = (path for path in alone.control_path(name).iterdir() if path.suffix == ".safetensors")
        assert file.read_bytes() == (both.control_path(name) / file.name).read_bytes()
    found = bundle_weights(both)
    assert not any(torch.equal(found[n][: len(tensor)], tensor) for n, tensor in base_weights(config).items())


@pytest.mark.parametrize("kind", ["shared A", "after"])
def test_stage_2_by_a_lora_of_the_model_is_merged(make_config: MakeConfig, kind: str) -> None:
    stage2 = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "model": "lora", "model_rank": 2, "centre": False}
    config = make_config(controls=KINDS[kind], stage2=stage2)
    bundle = train(config)
    probes_hold(bundle)
    base, found = base_weights(config), bundle_weights(bundle)
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        moved = found[name][: len(tensor)] - tensor
        if name.endswith("proj.weight"):
            assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 2, name
        else:
            assert not moved.count_nonzero(), name


@pytest.mark.parametrize(("precision", "held"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_lora_of_a_bfloat16_model_is_tuned_in_the_arithmetic_that_is_asked_for(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path, precision: str, held: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(base)
    stage2 = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "model": "lora", "model_rank": 2}
    config = make_config(base=str(base), precision=precision, stage2=stage2)
    run = Run(config, base, load_examples(config))
    model, _ = run.stage2(run.stage1())
    assert {parameter.dtype for parameter in model.model.embed_tokens.parameters()} == {held}
    bundle = train(config)
    assert {tensor.dtype for tensor in load_file(bundle.model_path / "model.safetensors").values()} == {torch.bfloat16}


def test_stage_2_alone_starts_from_new_controls_or_from_those_of_a_bundle(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    first = train(make_config(stage2={"epochs": 0}, output=tmp_path / "first"))
    none = {"epochs": 0}
    one_step = {"epochs": 0.1, "batch_size": 6, "learning_rate": 1e-5, "control_learning_rate": 1e-5, "centre": False}
    fresh = train(make_config(stage1=none, stage2=one_step, output=tmp_path / "fresh"))
    from_first = train(make_config(stage1=none, stage2=one_step, start_from=first.path, output=tmp_path / "second"))
    trained, new, further = (load_controls(b)["short"] for b in (first, fresh, from_first))
    assert isinstance(trained, LoraControl)
    assert isinstance(new, LoraControl)
    assert isinstance(further, LoraControl)
    for layer, (_, b) in trained.factors.items():
        assert float(new.factors[layer][1].abs().max()) <= 1.1e-5
        assert 0 < float((further.factors[layer][1] - b).abs().max()) <= 1.1e-5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"controls": {"rank": 4}}, "lora_A.weight is .8, 64. in .*; `controls` makes it .4, 64."),
        ({"seed": 1}, "has another A in .*; give the `seed` it was made with"),
        ({"controls": {"kind": "soft_prompt"}}, "has lora controls; `controls` asks for soft_prompt"),
        (
            {"preferences": {"formal": {"axis": "tone"}, "short": {"axis": "length"}}},
            "has no formal; it has long, short",
        ),
    ],
)
def test_a_bundle_that_cannot_be_started_from_is_refused(
    make_config: MakeConfig, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    first = train(make_config(stage2={"epochs": 0}, output=tmp_path / "first"))
    config = make_config(start_from=first.path, **more)
    examples = {name: load_examples(make_config())["short"] for name in config.preferences}
    with pytest.raises(TrainingError, match=message):
        Run(config, Path(config.base), examples).stage1()


def test_stages_that_make_no_sense_together_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match="both 0: nothing would be tuned"):
        make_config(stage1={"epochs": 0}, stage2={"epochs": 0})
    with pytest.raises(ValidationError, match="'frozen' controls must have learned something"):
        make_config(stage1={"epochs": 0}, stage2={"epochs": 1, "controls": "frozen"})
    with pytest.raises(ValidationError, match="start_text names 'brief'; the preferences are long, short"):
        make_config(controls={"kind": "soft_prompt", "start_text": {"brief": "x"}})


def test_uncontrolled_examples_are_replies_of_the_base_and_hold_it_in_stage_2(
    make_config: MakeConfig, tmp_path: Path, tiny_base: Path
) -> None:
    """The replies are sampled under the frozen base; their loss is a curve of its own, flat in stage 1."""
    stage = {"epochs": 2, "batch_size": 2, "learning_rate": 0.02, "uncontrolled_share": 0.5}
    config = make_config(
        stage1=stage,
        stage2=stage | {"learning_rate": 0.001},
        uncontrolled={"max_new_tokens": 256},
        output=tmp_path / "kept",
    )
    run = Run(config, tiny_base, load_examples(config))
    run.ask_the_base()
    eos = run.tokenizer.eos_token_id
    assert run.uncontrolled
    assert all(r.reply_ids[-1] == eos and r.reply_ids.count(eos) == 1 for r in run.uncontrolled)
    assert {r.prompt_ids for r in run.uncontrolled} <= {r.prompt_ids for g in run.rendered.values() for r in g}
    bundle = train(config)
    losses = json.loads((bundle.path / "report/training.json").read_text())["losses"]
    assert len(losses["stage1"]["uncontrolled"]) == len(losses["stage1"]["short"])
    if len(run.uncontrolled) == 1:  # each step sees the same ones
        assert len(set(losses["stage1"]["uncontrolled"])) == 1
    other = Run(config, tiny_base, load_examples(config))
    other.checkpoints.remove()
    other.ask_the_base()
    assert other.uncontrolled == run.uncontrolled


def test_replies_of_a_base_whose_turns_end_otherwise_end_there(
    make_config: MakeConfig, turns_end_otherwise: Path
) -> None:
    config = make_config(
        base=str(turns_end_otherwise),
        stage1={"epochs": 1, "uncontrolled_share": 0.5},
        uncontrolled={"max_new_tokens": 256},
    )
    run = Run(config, turns_end_otherwise, load_examples(config))
    run.ask_the_base()
    ends = [[token for token in r.reply_ids if token in (0, 2)] for r in run.uncontrolled]
    assert [r.reply_ids[-1:] for r in run.uncontrolled] == [tuple(found) for found in ends]
    assert [2] in ends
    assert all(r.reply_ids[-1] == 2 for group in run.rendered.values() for r in group)


def test_replies_of_the_base_are_sampled_from_its_probabilities_alone(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path
) -> None:
    """Whatever its generation configuration would have an engine do to them."""
    inclined = shutil.copytree(tiny_base, tmp_path / "inclined")
    file = inclined / "generation_config.json"
    own = {"do_sample": True, "repetition_penalty": 1.3, "min_p": 0.2, "no_repeat_ngram_size": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    replies = []
    for base in (tiny_base, inclined):
        config = make_config(
            base=str(base),
            stage1={"epochs": 1, "uncontrolled_share": 0.5},
            uncontrolled={"max_new_tokens": 256},
            output=tmp_path / f"of-{base.name}",
        )
        run = Run(config, base, load_examples(config))
        run.ask_the_base()
        replies.append(run.uncontrolled)
    assert replies[0] == replies[1]


def test_uncontrolled_examples_may_come_from_data(
    make_config: MakeConfig, tiny_base: Path, preference_file: Path
) -> None:
    """Labels are not read, and no model is asked, nor even loaded where nothing else wants one."""
    config = make_config(
        stage1={"epochs": 1, "uncontrolled_share": 0.25},
        uncontrolled={"data": [{"path": preference_file}]},
        objective={"kind": "preference"},
    )
    run = Run(config, tiny_base, load_examples(config))
    run.ask_the_base()
    assert len(run.uncontrolled) == 4  # a quarter of 16, beside 12 controlled ones
    assert all(r.rejected_ids is None for r in run.uncontrolled)
    known = {r.reply_ids for group in run.rendered.values() for r in group}
    assert {r.reply_ids for r in run.uncontrolled} <= known
    plain = Run(config.model_copy(update={"objective": ObjectiveConfig()}), tiny_base, load_examples(config))
    plain.load_model = None  # type: ignore[assignment, method-assign]
    plain.ask_the_base()
    assert plain.uncontrolled == run.uncontrolled


def test_the_preference_objective_makes_pairs_of_opposites_and_wants_some(
    make_config: MakeConfig, tiny_base: Path
) -> None:
    config = make_config(objective={"kind": "preference"})
    run = Run(config, tiny_base, load_examples(config))
    for own, other in (("short", "long"), ("long", "short")):
        by_prompt = {r.prompt_ids: r.reply_ids for r in run.rendered[other]}
        assert all(r.rejected_ids == by_prompt[r.prompt_ids] for r in run.rendered[own])
    alone = make_config(
        objective={"kind": "preference"}, preferences={"short": {"axis": "length"}, "long": {"axis": "length"}}
    )
    with pytest.raises(TrainingError, match="'preference' needs pairs, and short, long has none"):
        Run(alone, tiny_base, load_examples(alone))


def test_it_is_told_how_many_examples_have_a_pair(make_config: MakeConfig, tiny_base: Path) -> None:
    told: list[str] = []
    callback = Callback()
    callback.on_phase = told.append  # type: ignore[method-assign]
    config = make_config(objective={"kind": "preference"})
    examples = load_examples(config)
    examples["short"] = examples["short"][:4]
    Run(config, tiny_base, examples, callback).ask_the_base()
    said = "log-probabilities under the base of all pairs; examples with a pair: short 4 of 4, long 4 of 6"
    assert told == [said]


def test_a_base_that_never_ends_is_named(make_config: MakeConfig, tiny_base: Path) -> None:
    stage = {"epochs": 1, "uncontrolled_share": 0.1}
    config = make_config(stage1=stage, uncontrolled={"max_new_tokens": 1, "temperature": 1e-3})
    with pytest.raises(TrainingError, match=r"none of 1 replies of the base ended within 1 tokens; allow more"):
        Run(config, tiny_base, load_examples(config)).ask_the_base()


def test_the_preference_objective_moves_each_control_to_its_own_side(make_config: MakeConfig, tiny_base: Path) -> None:
    """Two controls on the same pairs, each preferring the other reply."""
    user = ({"role": "user", "content": "What is rain?"},)
    replies = {"short": "Rain.", "long": "It is rain, as one says."}
    examples = {
        name: [Example(user, own, name, rejected=replies["long" if name == "short" else "short"])] * 2
        for name, own in replies.items()
    }
    config = make_config(
        objective={"kind": "preference", "beta": 0.5, "likelihood_weight": 0.0},
        stage1={"epochs": 20, "batch_size": 2, "learning_rate": 0.01},
    )
    run = Run(config, tiny_base, examples)
    run.ask_the_base()
    run.stage1()
    for name in ("short", "long"):
        losses = run.record.curves["stage1"].losses[name]
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)
        assert losses[-1] < 0.2


FAST = [{"packing": "always"}, {"gradient_checkpointing": True}, {"loss_chunk": 3}, {"prompt_cache_mib": 64}]


@pytest.mark.parametrize("speed", FAST, ids=str)
@pytest.mark.parametrize("kind", ["shared A", "after"])
def test_speed_options_change_nothing_but_rounding(
    make_config: MakeConfig, speed: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    plain, fast = (
        load_controls(train(make_config(controls=KINDS[kind], output=tmp_path / name, speed=options)))
        for name, options in (("plain", {"prompt_cache_mib": 0}), ("fast", speed))
    )
    for one, other in zip(plain.values(), fast.values(), strict=True):
        for a, b in zip(tensors(one), tensors(other), strict=True):
            torch.testing.assert_close(a, b, atol=5e-4, rtol=5e-3)


@pytest.mark.parametrize(
    ("speed", "mib"), [({}, None), ({"prompt_cache_mib": 64}, 64), ({"packing": "never"}, 2048)], ids=str
)
def test_prompts_are_kept_on_cpus_where_told_or_where_rows_are_not_packed(
    make_config: MakeConfig, speed: dict[str, Any], mib: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Told(PromptCache):
        def __init__(self, max_bytes: int, device: torch.device) -> None:
            made.append(max_bytes >> 20)
            super().__init__(max_bytes, device)

    monkeypatch.setattr("meet_training.stages.loop_settings.PromptCache", Told)
    config = make_config(controls=KINDS["after"], speed=speed)
    Run(config, Path(config.base), load_examples(config)).stage1()
    assert made == ([] if mib is None else [mib])


def tensors(control: LoraControl | SoftPromptControl) -> list[torch.Tensor]:
    if isinstance(control, SoftPromptControl):
        return [control.embeddings]
    return [tensor for pair in control.factors.values() for tensor in pair]


@pytest.mark.parametrize("kind", ["own A", "after", "before"])
def test_controls_trained_together_equal_each_trained_alone(make_config: MakeConfig, kind: str) -> None:
    config = make_config(controls=KINDS[kind])
    examples = load_examples(config)
    together = Run(config, Path(config.base), examples).stage1()
    for label in ("short", "long"):
        preferences = {label: config.preferences[label].model_dump() | {"opposite": None}}
        alone_config = make_config(controls=KINDS[kind], preferences=preferences)
        alone = Run(alone_config, Path(config.base), {label: examples[label]}).stage1()
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, together[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stage2", [{"model": "lora", "learning_rate": 0.01}, {"controls": "frozen"}])
@pytest.mark.parametrize("kind", ["own A", "after"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_run_of_any_kind_goes_on_as_if_never_killed(
    make_config: MakeConfig, tmp_path: Path, kind: str, stage2: dict[str, Any], stage: str
) -> None:
    options: dict[str, Any] = {
        "controls": KINDS[kind],
        "stage1": {"epochs": 1, "batch_size": 2, "learning_rate": 0.02, "uncontrolled_share": 0.2},
        "stage2": {"epochs": 1, "batch_size": 2, "learning_rate": 0.001, "uncontrolled_share": 0.2} | stage2,
        "uncontrolled": {"max_new_tokens": 256},
        "checkpoint_every_s": 0,
    }
    undisturbed = train(make_config(output=tmp_path / "undisturbed", **options))

    class Kill(Callback):
        def on_step(self, progress: TrainProgress) -> None:
            if (progress.stage, progress.step) == (stage, 2):
                raise Killed

    config = make_config(**options)
    with pytest.raises(Killed):
        train(config, callbacks=[Kill()])
    resumed = train(config)
    assert {n: e.sha256 for n, e in resumed.manifest.files.items()} == {
        n: e.sha256 for n, e in undisturbed.manifest.files.items()
    }


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_callbacks_hear_all_of_a_run_in_order(make_config: MakeConfig) -> None:
    heard: list[str] = []

    class Listening(Callback):
        def on_start(self, config: TrainConfig) -> None:
            heard.append(f"start {config.stage2.learning_rate}")

        def on_phase(self, what: str) -> None:
            heard.append(what.split()[0])

        def on_part(self, what: str, num_done: int, num_all: int) -> None:
            heard.append(f"{what} {num_done}/{num_all}")

        def on_step(self, progress: TrainProgress) -> None:
            heard.append(f"{progress.stage} {progress.step}/{progress.num_steps} {sorted(progress.losses)}")

        def on_stage_end(self, stage: str, curve: Any) -> None:
            heard.append(f"end of {stage}")

        def on_bundle(self, bundle: Bundle) -> None:
            heard.append(bundle.manifest.name)

    train(
        make_config(stage1={"epochs": 1, "batch_size": 6}, stage2={"epochs": 1, "batch_size": 6}),
        callbacks=[Listening()],
    )
    both = "['long', 'short']"
    assert heard == [
        "examples rendered 6/12",
        "examples rendered 12/12",
        "start 3e-05",
        f"stage1 1/1 {both}",
        "end of stage1",
        f"stage2 1/1 {both}",
        "end of stage2",
        "writing",
        "tiny",
    ]


def test_mixes_are_exact_sums_whether_or_not_a_is_shared(make_config: MakeConfig, tmp_path: Path) -> None:
    for share_a in (True, False):
        bundle = train(make_config(controls={"rank": 4, "share_a": share_a}, output=tmp_path / str(share_a)))
        short, long = load_controls(bundle).values()
        assert isinstance(short, LoraControl)
        assert isinstance(long, LoraControl)
        mixed = mix([(short, 0.7), (long, -0.5)])
        assert mixed.rank == (4 if share_a else 8)
        for layer in short.factors:
            torch.testing.assert_close(mixed.delta(layer), 0.7 * short.delta(layer) - 0.5 * long.delta(layer))
        merged_equals_applied(bundle, mixed)


def merged_equals_applied(bundle: Bundle, control: LoraControl) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundle.model_path, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with control.applied(model) as controlled, torch.no_grad():
        applied = controlled(ids).logits
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, applied)
        control.merge(model)
        torch.testing.assert_close(model(ids).logits, applied, atol=1e-4, rtol=1e-4)


def test_soft_prompts_mix_by_standing_one_after_the_other(make_config: MakeConfig) -> None:
    bundle = train(make_config(controls=KINDS["after"]))
    short, long = load_controls(bundle).values()
    assert isinstance(short, SoftPromptControl)
    assert isinstance(long, SoftPromptControl)
    both = mix([(short, 1), (long, 1)])
    assert both.prompt([5, 6]) == [5, 6, *range(259, 267)]
    assert both.embeddings.shape == (8, 64)
    with pytest.raises(TrainingError, match="'long' has another strength than 1"):
        mix([(short, 1), (long, 0.5)])
