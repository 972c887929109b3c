"""What users of other packages complain of when they train several adapters on one model, each shown absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from meet_training.config import TrainConfig
from meet_training.controls.control import ControlSet
from meet_training.controls.lora import LoraTuning
from meet_training.controls.soft_prompt import SoftPromptTuning
from meet_training.controls.trained import load_controls
from meet_training.controls_config import LoraConfig, SoftPromptConfig
from meet_training.data.batches import Item, Schedule
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.run import train
from meet_training.stages.machine import Machine
from meet_training.stages.optimise import LoopConfig, backward
from meet_training.stages.tune_controls import (
    check_that_all_learned,
    control_groups,
    freeze_all_but_controls,
    let_controls_learn,
)

NAMES = ("a", "b", "c")
ITEMS = [Item(k, Rendered((5 + k, 6, 7), (8, 9 + k, 2))) for k in range(3)]
KINDS = ("shared A", "own A", "soft prompt")


@pytest.fixture
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


@pytest.fixture(params=KINDS)
def controls(request: pytest.FixtureRequest, model: Any, tiny_base: Path) -> ControlSet:
    from transformers import AutoTokenizer

    attached: ControlSet
    if request.param == "soft prompt":
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        config = SoftPromptConfig(num_virtual_tokens=4, start="vocabulary")
        attached = SoftPromptTuning(model, NAMES, config, 0, tokenizer, {})
    else:
        attached = LoraTuning(model, NAMES, LoraConfig(rank=4, share_a=request.param == "shared A"), seed=0)
    freeze_all_but_controls(model, attached)
    return attached


def loop(**options: Any) -> LoopConfig:
    fields: dict[str, Any] = {"stage": "stage1", "tokens_per_pass": 512, "pad_id": 0, "autocast": False, "seed": 0}
    return LoopConfig(machine=Machine(torch.device("cpu")), **(fields | options))


def groups_of(controls: ControlSet, *, max_grad_norm: float = 1.0) -> list[Any]:
    schedule = Schedule(tuple(((item.rendered,),) * 4 for item in ITEMS))
    return control_groups(controls, schedule, learning_rate=0.01, warmup_share=0, max_grad_norm=max_grad_norm)


def test_every_control_of_a_batch_gets_gradients_not_the_first_alone(model: Any, controls: ControlSet) -> None:
    backward(model, controls, ITEMS, loop())
    for k in range(3):
        assert any(p.grad is not None and p.grad.count_nonzero() for p in controls.parameters_of(k)), NAMES[k]


def test_a_control_that_never_moves_is_an_error_by_name(model: Any, controls: ControlSet) -> None:
    """Controls b and c take no step, as later adapters elsewhere silently do not."""
    before = controls.state()
    losses = backward(model, controls, ITEMS, loop())
    groups_of(controls)[0].step(0)
    after = controls.state()
    moved = {name: (losses[k], losses[k] - 0.1) for k, name in enumerate(NAMES)}
    with pytest.raises(TrainingError, match="control 'b' did not learn: every weight of it is what it was"):
        check_that_all_learned(NAMES, before, after, moved)
    check_that_all_learned(("a",), before, after, moved)
    still = {"a": (losses[0], losses[0])}
    with pytest.raises(TrainingError, match="control 'a' did not learn: its loss on its first batch was"):
        check_that_all_learned(("a",), before, after, still)


def test_a_step_of_one_control_touches_no_other(model: Any, controls: ControlSet) -> None:
    """Neither weights, nor gradients, nor what its optimiser remembers; nor does another's huge gradient clip it."""
    groups = groups_of(controls)
    backward(model, controls, ITEMS, loop())
    groups[1].step(0)
    before = controls.state()
    remembered = str(groups[1].state())
    gradients = [p.grad.clone() for p in controls.parameters_of(2) if p.grad is not None]
    for parameter in controls.parameters_of(0):
        if parameter.grad is not None:
            parameter.grad.mul_(1e6)
    groups[0].step(0)
    after = controls.state()
    for where, tensor in after.items():
        if not where.startswith("a/"):
            assert torch.equal(tensor, before[where]), where
    assert any(not torch.equal(tensor, before[where]) for where, tensor in after.items() if where.startswith("a/"))
    assert str(groups[1].state()) == remembered
    left = [p.grad for p in controls.parameters_of(2) if p.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(gradients, left, strict=True))


def test_a_control_that_is_not_in_a_batch_gets_no_gradient_at_all(model: Any, controls: ControlSet) -> None:
    """A gradient of zeros would still move it by its optimiser's momentum."""
    backward(model, controls, [ITEMS[0], ITEMS[2]], loop())
    assert all(p.grad is None for p in controls.parameters_of(1))


def test_loading_or_freeing_one_control_leaves_the_others_frozen_state_alone(
    model: Any, controls: ControlSet, tmp_path: Path
) -> None:
    controls.save(0, tmp_path / "a")
    for parameter in controls.parameters_of(1):
        parameter.requires_grad_(False)
    before = {k: [p.requires_grad for p in controls.parameters_of(k)] for k in range(3)}
    controls.load(0, tmp_path / "a")
    controls.load_state(controls.state())
    assert {k: [p.requires_grad for p in controls.parameters_of(k)] for k in range(3)} == before
    learned = {id(p) for k in range(3) for p in controls.parameters_of(k)}
    let_controls_learn(controls)
    assert all(p.requires_grad == (id(p) in learned) for p in model.parameters())


def test_a_mistyped_name_is_an_error_everywhere(tiny_base: Path, preference_file: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "name": "tiny",
        "base": str(tiny_base),
        "output": tmp_path / "bundle",
        "data": [{"path": preference_file}],
        "preferences": {"short": {"axis": "length"}, "long": {"axis": "length"}},
        "precision": "float32",
    }
    with pytest.raises(ValueError, match=r"opposite names 'lnog'; the preferences are long, short"):
        TrainConfig.model_validate(
            fields | {"preferences": {**fields["preferences"], "short": {"axis": "length", "opposite": "lnog"}}}
        )
    mistyped = TrainConfig.model_validate(fields | {"preferences": {"short": {"axis": "x"}, "lnog": {"axis": "x"}}})
    with pytest.raises(TrainingError, match=r"label 'long' is none of the preferences \(short, lnog\)"):
        train(mistyped)
    bundle = train(TrainConfig.model_validate(fields))
    with pytest.raises(KeyError, match="lnog"):
        load_controls(bundle)["lnog"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_mixed_batch_goes_over_the_model_once(model: Any, controls: ControlSet, packed: bool) -> None:
    calls = {"layers": 0, "products": 0}
    model.model.layers[0].register_forward_hook(lambda *_: calls.update(layers=calls["layers"] + 1))
    losses = backward(model, controls, ITEMS, loop(packed=packed))
    assert sorted(losses) == [0, 1, 2]
    assert calls["layers"] == 1


@pytest.mark.parametrize("placement", ["before_prompt", "after_prompt"])
def test_virtual_tokens_train_packed_and_checkpointed_and_generate(
    tiny_base: Path, preference_file: Path, tmp_path: Path, placement: str
) -> None:
    from transformers import AutoModelForCausalLM

    bundle = train(
        TrainConfig.model_validate(
            {
                "name": "tiny",
                "base": str(tiny_base),
                "output": tmp_path / "bundle",
                "data": [{"path": preference_file}],
                "preferences": {"short": {"axis": "length"}, "long": {"axis": "length"}},
                "precision": "float32",
                "controls": {"kind": "soft_prompt", "num_virtual_tokens": 5, "placement": placement},
                "speed": {"packing": "always", "gradient_checkpointing": True},
            }
        )
    )
    model = AutoModelForCausalLM.from_pretrained(bundle.model_path)
    for control in load_controls(bundle).values():
        ids = torch.tensor([control.prompt([5, 6, 7])])
        for options in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2}):
            out = model.generate(ids, max_new_tokens=12, **options)
            assert int(out[:, ids.shape[1] :].max()) < 259


def test_there_is_one_copy_of_the_base_however_many_controls(tiny_base: Path) -> None:
    """Weights of the base are shared by all controls; each control adds its own B alone."""
    from transformers import AutoModelForCausalLM

    sizes = []
    for num in (1, 8):
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        controls = LoraTuning(model, [f"c{k}" for k in range(num)], LoraConfig(rank=4), seed=0)
        learned = sum(p.numel() for k in range(num) for p in controls.parameters_of(k))
        assert learned == num * sum(p.numel() for p in controls.parameters_of(0))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in everything(model)}
        sizes.append(sum(storages.values()) - learned * 4)
    assert sizes[0] == sizes[1]


def everything(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
