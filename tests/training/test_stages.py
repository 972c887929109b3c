"""Both stages on a tiny model: what moves and what does not, killed and resumed, alone and together."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from meet_bundle import Bundle, BundleError, Manifest, Probe, open_bundle
from meet_training import export
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.data.forms import load_examples
from meet_training.errors import TrainingError
from meet_training.run import train
from meet_training.stages.checkpoint import CheckpointFolder
from meet_training.stages.machine import Machine, choose_device, choose_dtype, cpu_is_fast_at_bf16
from meet_training.stages.optimise import Curve, ParameterGroup, TrainProgress, rate
from meet_training.stages.resumable import StageParts
from meet_training.stages.tune_model import model_groups
from meet_training.two_stages import Run


def a_run(config: TrainConfig) -> Run:
    return Run(config, Path(config.base), load_examples(config))


def digests(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items()}


def test_stage_1_leaves_every_weight_of_the_model_bit_identical(
    make_config: Callable[..., TrainConfig],
) -> None:
    run = a_run(make_config())
    used: list[Any] = []
    load = run.load_model
    run.load_model = lambda dtype: used.append(load(dtype)) or used[-1]  # type: ignore[method-assign, func-returns-value]
    state = run.stage1()
    before = {f".{name}": tensor for name, tensor in load(torch.float32).state_dict().items()}
    after = {f".{name}".replace(".base.", "."): tensor for name, tensor in used[0].state_dict().items()}
    assert before.keys() <= after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert all(tensor.count_nonzero() for tensor in state.values())


def test_stage_2_moves_the_model_and_every_control(make_config: Callable[..., TrainConfig]) -> None:
    run = a_run(make_config())
    state = run.stage1()
    model, controls = run.stage2(state)
    assert all(not torch.equal(tensor, state[name]) for name, tensor in controls.state().items())
    controls.detach(model)
    base = run.load_model(torch.float32).state_dict()
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])]
    assert moved == list(base)


@pytest.mark.parametrize("centre", [None, False])
def test_opposites_are_centred_unless_told_otherwise(
    centre: bool | None, make_config: Callable[..., TrainConfig]
) -> None:
    preferences = {"short": {"axis": "length", "opposite": "long"}, "long": {"axis": "length", "opposite": "short"}}
    config = make_config(preferences=preferences)
    config = config.model_copy(update={"stage2": config.stage2.model_copy(update={"centre": centre})})
    run = a_run(config)
    _, controls = run.stage2(run.stage1())
    pairs = zip(controls.parameters_of(0), controls.parameters_of(1), strict=True)
    assert all(torch.allclose(one, -other, atol=1e-6) for one, other in pairs) is (centre is None)


@pytest.mark.parametrize("opposites", [("long", None), (None, "short")])
def test_an_opposite_that_one_side_alone_names_is_centred_as_if_both_did(
    opposites: tuple[str | None, str | None], make_config: Callable[..., TrainConfig]
) -> None:
    """Centred by itself the one that names the other would become nothing, and the model would become it."""
    preferences = {
        label: {"axis": "length", "opposite": opposite}
        for label, opposite in zip(("short", "long"), opposites, strict=True)
    }
    run = a_run(make_config(preferences=preferences))
    _, controls = run.stage2(run.stage1())
    for one, other in zip(controls.parameters_of(0), controls.parameters_of(1), strict=True):
        assert one.count_nonzero()
        torch.testing.assert_close(one, -other, atol=1e-6, rtol=1e-5)


def test_without_opposites_nothing_is_centred_and_asking_for_it_is_refused(
    make_config: Callable[..., TrainConfig],
) -> None:
    preferences = {"short": {"axis": "length"}, "long": {"axis": "length"}}
    run = a_run(make_config(preferences=preferences, stage2={"epochs": 1, "batch_size": 2, "learning_rate": 0.001}))
    _, controls = run.stage2(run.stage1())
    pairs = zip(controls.parameters_of(0), controls.parameters_of(1), strict=True)
    assert not any(torch.allclose(one, -other, atol=1e-6) for one, other in pairs)
    with pytest.raises(ValueError, match=r"stage2\.centre: needs opposites, and none of short, long names one"):
        make_config(preferences=preferences, stage2={"centre": True})


@pytest.mark.parametrize(
    ("controls", "stage2"),
    [
        ({"kind": "soft_prompt"}, {}),
        ({"kind": "lora", "share_a": False}, {}),
        ({"kind": "lora"}, {"controls": "frozen"}),
        ({"kind": "lora"}, {"epochs": 0}),
    ],
)
def test_what_cannot_be_centred_is_not_and_is_refused_where_it_is_asked_for(
    controls: dict[str, Any], stage2: dict[str, Any], make_config: Callable[..., TrainConfig]
) -> None:
    assert make_config(controls=controls, stage2=stage2).resolved().stage2.centre is False
    with pytest.raises(ValueError, match=r"stage2\.centre: needs LoRA controls that share one A"):
        make_config(controls=controls, stage2={**stage2, "centre": True})


def test_both_stages_learn(make_config: Callable[..., TrainConfig]) -> None:
    run = a_run(
        make_config(
            stage1={"epochs": 8, "batch_size": 6, "learning_rate": 0.02},
            stage2={"epochs": 6, "batch_size": 6, "learning_rate": 0.001},
        )
    )
    run.both_stages()
    for stage in ("stage1", "stage2"):
        for losses in run.record.curves[stage].losses.values():
            assert losses[-1] < losses[0]
    assert max(run.record.curves["stage2"].losses["short"]) < run.record.curves["stage1"].losses["short"][0]


def test_controls_trained_together_equal_each_trained_alone(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    together = a_run(config).stage1()
    examples = load_examples(config)
    for label in ("short", "long"):
        alone_config = make_config(preferences={label: {"axis": "length"}})
        alone = Run(alone_config, Path(config.base), {label: examples[label]}).stage1()
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, together[name], atol=2e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_bundle_and_another_does_not(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    first, second = (train(make_config(output=tmp_path / name)) for name in ("a", "b"))
    assert (first.path / "meet.json").read_bytes() == (second.path / "meet.json").read_bytes()
    other = train(make_config(output=tmp_path / "c", seed=1))
    assert digests(first).keys() == digests(other).keys()
    assert digests(first)["model/model.safetensors"] != digests(other)["model/model.safetensors"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class At(Callback):
    """Calls a function with every step's progress."""

    def __init__(
        self, on_step: Callable[[TrainProgress], None], on_phase: Callable[[str], None] = lambda _: None
    ) -> None:
        self.on_step = on_step  # type: ignore[method-assign]
        self.on_phase = on_phase  # type: ignore[method-assign]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_run_goes_on_and_ends_as_if_never_killed(
    make_config: Callable[..., TrainConfig], tmp_path: Path, stage: str
) -> None:
    undisturbed = train(make_config(output=tmp_path / "undisturbed"))
    config = make_config(checkpoint_every_s=0)

    def kill(progress: TrainProgress) -> None:
        if progress.stage == stage and progress.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, callbacks=[At(kill)])
    assert not config.output.exists()
    assert not list(tmp_path.glob("**/meet.json")) or list(tmp_path.glob("**/meet.json")) == [
        undisturbed.path / "meet.json"
    ]
    seen: list[tuple[str, int]] = []
    resumed = train(config, callbacks=[At(lambda p: seen.append((p.stage, p.step)))])
    assert seen[0] == (stage, 3)
    assert digests(resumed) == digests(undisturbed)
    ours, theirs = (json.loads((b.path / "report/training.json").read_text()) for b in (resumed, undisturbed))
    assert ours["losses"] == theirs["losses"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_checkpoint_is_mapped_not_read_into_memory(tmp_path: Path) -> None:
    """Every process takes one up, and its states of a whole model are three times the weights."""
    checkpoints = CheckpointFolder(tmp_path / "bundle", "key", 0)
    checkpoints.save({"weights": torch.arange(1 << 20)})
    saved = checkpoints.load()
    assert saved is not None
    assert "checkpoint.pt" in Path("/proc/self/maps").read_text()
    saved["weights"] += 1  # as an optimiser on a CPU does with its moments
    again = checkpoints.load()
    assert again is not None
    assert torch.equal(again["weights"] + 1, saved["weights"])


def test_a_sharded_model_is_put_together_without_moments_and_in_the_main_process_alone(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(make_config())
    model = run.load_model(torch.float32)
    controls = run.attach(model)
    schedule = run.schedule("stage2", run.config.stage2)
    groups = model_groups(model, None, controls, schedule, run.config.stage2)
    parts = StageParts(model, controls, schedule, groups, tuned=model)
    loaded = []
    load = run.load_model

    def counted(dtype: torch.dtype) -> Any:
        loaded.append(dtype)
        return load(dtype)

    monkeypatch.setattr(run, "load_model", counted)
    monkeypatch.setattr(
        ParameterGroup, "state", lambda group: pytest.fail(f"gathered the moments of {group.config.name}")
    )
    monkeypatch.setattr(run, "machine", Machine(torch.device("cpu"), rank=1))
    assert run._put_together(parts, by_lora=False) is None
    assert not loaded
    monkeypatch.setattr(run, "machine", Machine(torch.device("cpu")))
    assert run._put_together(parts, by_lora=False) is not None
    assert len(loaded) == 1


@pytest.mark.parametrize("what", ["checkpoint", "bundle"])
def test_a_full_disk_is_told_and_nothing_is_half_written(
    make_config: Callable[..., TrainConfig], tmp_path: Path, what: str
) -> None:
    config = make_config(checkpoint_every_s=0 if what == "checkpoint" else 300, stage1={"epochs": 0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        with pytest.raises(
            TrainingError, match=rf"{what if what == 'bundle' else 'run'} cannot be written: .*too large"
        ):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in tmp_path.rglob("*") if "partial" in path.name] == []
    assert not config.output.exists()
    train(config)
    open_bundle(config.output)


def test_an_output_that_cannot_be_is_refused_before_any_work(
    make_config: Callable[..., TrainConfig], preference_file: Path
) -> None:
    def never(progress: TrainProgress) -> None:
        raise Killed

    with pytest.raises(TrainingError, match=r"\.bundle\.run cannot be written: Not a directory"):
        train(make_config(output=preference_file / "bundle"), callbacks=[At(never)])


def test_a_checkpoint_of_another_run_is_not_taken(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(checkpoint_every_s=0)

    def kill(progress: TrainProgress) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(config, callbacks=[At(kill)])
    seen: list[int] = []
    train(make_config(seed=1), callbacks=[At(lambda p: seen.append(p.step))])
    assert seen[0] == 1


def test_what_a_run_passes_over_is_told(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(checkpoint_every_s=0)
    heard: list[str] = []

    def kill(progress: TrainProgress) -> None:
        raise Killed

    for more in ({}, {"max_length": 64}):
        with pytest.raises(Killed):
            train(config.model_copy(update=more), callbacks=[At(kill, heard.append)])
        heard.append("killed")
    with pytest.raises(Killed):
        train(config.model_copy(update={"max_length": 64}), callbacks=[At(kill, heard.append)])
    left_out = "examples longer than max_length (64) left out: short 0 of 6, long 4 of 6"
    anew = "beginning anew: the checkpoint beside the output is of another configuration, other data or another base"
    assert heard == ["killed", left_out, anew, "killed", left_out]


def test_a_run_is_known_by_what_its_files_hold_not_by_where_they_lie(
    make_config: Callable[..., TrainConfig], tiny_base: Path, preference_file: Path, tmp_path: Path
) -> None:
    base, mine = tmp_path / "base", tmp_path / "mine.jsonl"
    shutil.copytree(tiny_base, base)
    shutil.copy(preference_file, mine)
    started_from = train(make_config(base=str(base), output=tmp_path / "first", stage2={"epochs": 0})).path
    more: dict[str, Any] = {"stage1": {"epochs": 1, "uncontrolled_share": 0.5}}

    def key(data: Path = mine, start_from: Path = started_from) -> str:
        config = make_config(base=str(base), start_from=start_from, uncontrolled={"data": [{"path": data}]}, **more)
        return a_run(config).checkpoints.key

    def key_with(file: Path, old: str, new: str) -> str:
        before = file.read_text()
        assert old in before
        file.write_text(before.replace(old, new))
        found = key()
        file.write_text(before)
        return found

    elsewhere = shutil.copy(mine, tmp_path / "elsewhere.jsonl"), shutil.copytree(started_from, tmp_path / "moved")
    assert key() == key(elsewhere[0], elsewhere[1])
    changed = [
        key_with(base / "chat_template.jinja", "message['content']", "message['content'].strip()"),
        key_with(base / "tokenizer.json", '"<|pad|>"', '"<|PAD|>"'),
        key_with(base / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        key_with(base / "generation_config.json", "{", '{"top_k": 3,'),
        key_with(mine, "as one says", "as some say"),
    ]
    other = make_config(base=str(base), output=tmp_path / "other", stage1={"epochs": 1}, stage2={"epochs": 0})
    changed.append(key(start_from=train(other).path))
    assert len({key(), *changed}) == 7


def test_the_bundle_loads_piece_by_piece_and_its_probes_are_true(
    make_config: Callable[..., TrainConfig],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = train(make_config())
    assert AutoTokenizer.from_pretrained(bundle.model_path).chat_template
    for preference in bundle.manifest.preferences:
        probe = preference.probe
        plain = AutoModelForCausalLM.from_pretrained(bundle.model_path, dtype=torch.float32)
        assert logprobs_of(plain, probe) == pytest.approx(probe.uncontrolled, abs=1e-4)
        controlled = PeftModel.from_pretrained(plain, str(bundle.control_path(preference.name)))
        assert logprobs_of(controlled, probe) == pytest.approx(probe.controlled, abs=1e-4)
        assert probe.controlled != pytest.approx(probe.uncontrolled, abs=1e-3)
        assert preference.trained_examples == 6


def logprobs_of(model: Any, probe: Probe) -> list[float]:
    logprobs = model(torch.tensor([probe.token_ids])).logits[0].log_softmax(-1)
    return [logprobs[i - 1, probe.token_ids[i]].item() for i in range(probe.start, len(probe.token_ids))]


def test_what_was_trained_takes_no_memory_when_it_is_read_back(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes are in float32: beside the model itself that was six bytes a parameter, 192 GB of a 32B."""
    held: list[bool] = []
    probes = export._with_probes

    def with_probes(folder: Path, manifest: Manifest, trained: export.Trained) -> Manifest:
        held.extend(not parameter.is_meta for parameter in trained.model.parameters())
        return probes(folder, manifest, trained)

    monkeypatch.setattr(export, "_with_probes", with_probes)
    train(make_config(stage2={"epochs": 0}))
    assert held
    assert not any(held)


def test_nothing_is_written_where_the_output_exists(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    config.output.mkdir()
    with pytest.raises(BundleError, match=r"output: .* exists"):
        train(config)
    assert list(config.output.iterdir()) == []
    train(config, replace=True)
    open_bundle(config.output)


def test_what_cannot_be_trained_is_refused_before_any_work(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    bert.save_pretrained(tmp_path / "bert")
    mistakes = {
        str(tmp_path / "bert"): "is no causal language model .its architecture is BertModel",
        str(tmp_path / "nowhere"): "is no model folder, hub name or smollm2-135m",
    }
    for base, message in mistakes.items():
        with pytest.raises(TrainingError, match=message):
            train(make_config(base=base))
    assert not (tmp_path / "bundle").exists()


def test_a_loss_that_is_no_number_stops_the_run_by_name() -> None:
    curve = Curve()
    curve.add("short", 1.0)
    with pytest.raises(TrainingError, match="the loss of 'short' became nan at its step 1"):
        curve.add("short", float("nan"))


@pytest.mark.parametrize("controls", ["frozen", "joint"])
def test_a_last_step_that_ends_in_no_numbers_is_no_bundle(
    make_config: Callable[..., TrainConfig], controls: str
) -> None:
    one_step = {"epochs": 1, "batch_size": 6, "learning_rate": 1e38, "controls": controls}
    config = make_config(stage1={"epochs": 1, "batch_size": 6, "learning_rate": 0.02}, stage2=one_step)
    with pytest.raises(TrainingError, match=r"the loss of 'short' became (nan|inf) at the last step of stage2; lower"):
        train(config)
    assert not config.output.exists()


def test_the_learning_rate_rises_then_falls() -> None:
    assert [round(rate(i, 10, 0.2), 3) for i in range(10)] == [
        0.5,
        1,
        1,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
    ]
    assert rate(0, 1, 0.0) == 1.0
    assert [rate(i, 10, 0.25) for i in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])  # 2.5 steps are 3
    assert rate(3, 4, 1.0) == 1.0


def test_bf16_is_chosen_by_what_the_processor_says(tmp_path: Path) -> None:
    for flags, fast in (("fpu avx512f avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx2", False)):
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags : {flags}\n")
        assert cpu_is_fast_at_bf16(tmp_path / "cpuinfo") is fast
    assert cpu_is_fast_at_bf16(tmp_path / "none") is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)])
def test_bf16_is_not_chosen_where_a_gpu_emulates_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    """A T4 does, more slowly than it computes in float32."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=capability[0], minor=capability[1])
    )
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert choose_dtype("auto", device) == dtype
    assert choose_dtype("bfloat16", device) == torch.bfloat16


def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(TrainingError, match="device: 'cuda' was asked for"):
        choose_device("cuda")
