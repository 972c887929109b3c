"""What may not come near the engine, and that the error names the control."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meet_bundle import LoraControls, open_bundle
from meet_server.app import admit
from meet_server.errors import ServerError
from meet_server.registry.admission import ControlRefused, check_lora, model_shapes

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle / "controls" / "concise", tmp_path / "concise"))


def refusal(bundle: Path, folder: Path) -> str:
    controls = open_bundle(bundle).manifest.controls
    assert isinstance(controls, LoraControls)
    with pytest.raises(ControlRefused) as caught:
        check_lora("concise", folder, controls, model_shapes(bundle / "model"))
    message = str(caught.value)
    assert message.startswith("control concise: ")
    assert "\n" not in message
    return message


def change(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_right_controls_are_admitted(bundle: Path) -> None:
    admit(open_bundle(bundle))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "PROMPT_TUNING"),
        ("bias", "all"),
        ("use_dora", True),
        ("use_rslora", True),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("layers_to_transform", [0]),
        ("use_qalora", True),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"]}),
        ("layer_replication", [[0, 1]]),
        ("alora_invocation_tokens", [5]),
        ("target_parameters", ["mlp.experts.down_proj"]),
        ("trainable_token_indices", [5]),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("use_dora", 0),  # equal to what is meant, and no boolean
        ("r", 16),
        ("lora_alpha", 8),
        ("target_modules", ["q_proj"]),
        ("target_modules", "all-linear"),
    ],
)
def test_configuration(bundle: Path, folder: Path, field: str, value: Any) -> None:
    change(folder, **{field: value})
    assert field in refusal(bundle, folder)


def test_what_a_configuration_leaves_unused_or_out_is_no_matter(bundle: Path, folder: Path) -> None:
    change(folder, modules_to_save=[], rank_pattern={}, bias=None, peft_type="lora", of_a_release_to_come=1)
    manifest = open_bundle(bundle).manifest
    assert isinstance(manifest.controls, LoraControls)
    check_lora("concise", folder, manifest.controls, model_shapes(bundle / "model"))


def test_configuration_that_is_no_json(bundle: Path, folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")
    assert "is not JSON" in refusal(bundle, folder)


def test_pickles_and_other_files(bundle: Path, folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "holds adapter_model.bin" in refusal(bundle, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(bundle: Path, folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"lacks {name}" in refusal(bundle, folder)


def test_file_that_is_no_safetensors(bundle: Path, folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    assert "is no safetensors file" in refusal(bundle, folder)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda t: t.pop(FIRST), f"1 tensors are missing, the first is {FIRST}"),
        (lambda t: t.update({FIRST: torch.zeros(4, 64)}), "has shape (4, 64); the model needs (8, 64)"),
        (lambda t: t.update({FIRST: torch.zeros(8, 64, dtype=torch.int8)}), "is I8"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(8, 64)}), "belongs to no layer"),
        (lambda t: t.update({FIRST.replace("layers.0", "layers.9"): torch.zeros(8, 64)}), "belongs to no layer"),
    ],
)
def test_tensors(bundle: Path, folder: Path, alter: Callable[[dict[str, Any]], Any], message: str) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    alter(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert message in refusal(bundle, folder)


def test_experts_are_adapted_all_or_none(bundle: Path, folder: Path) -> None:
    """In a model's files they have the names of shared experts and dense layers beside them, which are adapted."""
    controls = open_bundle(bundle).manifest.controls
    assert isinstance(controls, LoraControls)
    layer = "model.layers.1.mlp.experts.{}.down_proj"
    shapes = model_shapes(bundle / "model") | {f"{layer.format(i)}.weight": (64, 32) for i in (0, 1)}
    check_lora("concise", folder, controls, shapes)
    tensors = load_file(folder / "adapter_model.safetensors")
    own = {f"base_model.model.{layer.format(i)}": torch.zeros(8, 32) for i in (0, 1)}
    first, second = (
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": torch.zeros(64, 8)} for name, a in own.items()
    )
    save_file(tensors | first | second, folder / "adapter_model.safetensors")
    check_lora("concise", folder, controls, shapes)
    save_file(tensors | first, folder / "adapter_model.safetensors")
    with pytest.raises(ControlRefused, match=r"2 tensors are missing, the first is .*experts\.1\.down_proj"):
        check_lora("concise", folder, controls, shapes)


def test_model_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"holds no \*\.safetensors"):
        model_shapes(tmp_path)
