"""Whether a LoRA control may come near the engine: checks its folder against the bundle's model.

The engine dies of a bad adapter that it meets while stepping, so everything that can be seen from the
outside is looked at first: the configuration's fields, the files, and each tensor's name and shape from
the safetensors headers. No weights are read and nothing is imported that could run them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize, safe_open

from meet_bundle import LoraControls
from meet_server.errors import ServerError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ALLOWED_FILES = frozenset({CONFIG, WEIGHTS, "README.md"})

_PREFIX = "base_model.model."
# Experts are matrices of their own in a model's files and one tensor in transformers, which a LoRA of its linear layers
# leaves alone. Shared experts and the dense layers beside them have the same names and are linear layers.
_EXPERTS = ".experts."
_DTYPES = frozenset({"F32", "F16", "BF16"})
# What PEFT can train and plain LoRA serving cannot apply: field -> the values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False, {}),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "megatron_config": (None, {}),
}

Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor by its name."""


class ControlRefused(ServerError):
    """A control cannot be served. The message names the control."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"control {name}: {why}")


def model_shapes(model_path: Path) -> Shapes:
    """Shapes of the model's tensors, from its safetensors headers. Raises ServerError where there are none."""
    shapes: Shapes = {}
    for file in sorted(model_path.glob("*.safetensors")):
        try:
            shapes |= {name: shape for name, shape, _ in _headers(file)}
        except (SafetensorError, OSError) as error:
            raise ServerError(f"{file} is no safetensors file: {error}") from None
    if not shapes:
        raise ServerError(f"{model_path} holds no *.safetensors; the server reads model weights in that form only")
    return shapes


def check_lora(name: str, folder: Path, controls: LoraControls, model: Shapes) -> None:
    """Raises ControlRefused, naming the control, unless the folder holds a LoRA that fits the model.

    `controls` is what the manifest says of every control; `model` comes from `model_shapes`.
    """
    if not folder.is_dir():
        raise ControlRefused(name, f"{folder} is no folder")
    _check_files(name, str(folder), {path.relative_to(folder).as_posix() for path in folder.rglob("*")})
    try:
        _check_config(name, _parsed_config(name, (folder / CONFIG).read_bytes()), controls)
        tensors = list(_headers(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise ControlRefused(name, f"{WEIGHTS} is no safetensors file: {error}") from None
    _check_tensors(name, tensors, controls, model)


def check_lora_files(
    name: str, files: Mapping[str, bytes], controls: LoraControls, model: Shapes, shared_a: Mapping[str, bytes]
) -> None:
    """As `check_lora`, for a control that is in no folder yet.

    `shared_a` comes from `a_matrices` of a control that it must have its A in common with, and is empty where each
    has its own.
    """
    _check_files(name, "it", set(files))
    _check_config(name, _parsed_config(name, files[CONFIG]), controls)
    try:
        tensors = deserialize(files[WEIGHTS])  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ControlRefused(name, f"{WEIGHTS} is no safetensors file: {error}") from None
    _check_tensors(name, [(tensor, tuple(said["shape"]), said["dtype"]) for tensor, said in tensors], controls, model)
    own = {tensor: bytes(said["data"]) for tensor, said in tensors if tensor in shared_a}
    if differing := sorted(tensor for tensor in shared_a if own.get(tensor) != shared_a[tensor]):
        raise ControlRefused(
            name,
            f"{differing[0]} is not the A that all controls of this bundle share, so that it could not be mixed with "
            "them; train it beside them",
        )


def a_matrices(folder: Path) -> dict[str, bytes]:
    """The A of every layer of a control of the bundle's own, by its tensor's name.

    Raises ServerError where there is none any more: a bundle may be removed while it is served.
    """
    try:
        tensors = deserialize((folder / WEIGHTS).read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise ServerError(f"{folder / WEIGHTS} is no safetensors file: {error}") from None
    return {tensor: bytes(said["data"]) for tensor, said in tensors if tensor.endswith(".lora_A.weight")}


def _headers(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    with safe_open(file, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            header = tensors.get_slice(name)
            yield name, tuple(header.get_shape()), header.get_dtype()


def _check_files(name: str, what: str, found: set[str]) -> None:
    if missing := sorted({CONFIG, WEIGHTS} - found):
        raise ControlRefused(name, f"{what} lacks {', '.join(missing)}")
    if extra := sorted(found - ALLOWED_FILES):
        raise ControlRefused(
            name, f"{what} holds {', '.join(extra)}; a LoRA control is {CONFIG} and {WEIGHTS} and nothing else"
        )


def _parsed_config(name: str, content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ControlRefused(name, f"{CONFIG} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ControlRefused(name, f"{CONFIG} holds no JSON object")
    return config


def _check_config(name: str, config: dict[str, Any], controls: LoraControls) -> None:
    if str(config.get("peft_type", "")).upper() != "LORA":
        raise ControlRefused(name, f"peft_type is {config.get('peft_type')!r}; LORA is what can be served")
    for field, unused in _UNUSED.items():
        value = config.get(field)
        if not any(value is each or (value == each and type(value) is type(each)) for each in unused):
            raise ControlRefused(name, f"{field} is {value!r}, which cannot be served; leave it unused in training")
    if config.get("r") != controls.rank:
        raise ControlRefused(name, f"r is {config.get('r')!r}; the manifest says rank {controls.rank}")
    if config.get("lora_alpha") != controls.alpha:
        raise ControlRefused(
            name, f"lora_alpha is {config.get('lora_alpha')!r}; the manifest says alpha {controls.alpha:g}"
        )
    targets = config.get("target_modules")
    if not isinstance(targets, list) or set(map(str, targets)) != set(controls.target_modules):
        raise ControlRefused(
            name, f"target_modules is {targets!r}; the manifest says {', '.join(controls.target_modules)}"
        )


def _check_tensors(
    name: str, tensors: Iterable[tuple[str, tuple[int, ...], str]], controls: LoraControls, model: Shapes
) -> None:
    wanted = _expected(controls, model)
    if not wanted:
        raise ControlRefused(name, f"the model has no linear layers named {', '.join(controls.target_modules)}")
    found = set()
    for tensor, shape, dtype in tensors:
        found.add(tensor)
        if tensor not in wanted:
            raise ControlRefused(name, f"tensor {tensor} belongs to no layer that the manifest says is adapted")
        if shape != wanted[tensor]:
            raise ControlRefused(name, f"tensor {tensor} has shape {shape}; the model needs {wanted[tensor]}")
        if dtype not in _DTYPES:
            raise ControlRefused(name, f"tensor {tensor} is {dtype}; one of {', '.join(sorted(_DTYPES))} is needed")
    if not any(_EXPERTS in tensor for tensor in found):
        wanted = {tensor: shape for tensor, shape in wanted.items() if _EXPERTS not in tensor}
    if missing := sorted(wanted.keys() - found):
        raise ControlRefused(name, f"{len(missing)} tensors are missing, the first is {missing[0]}")


def _expected(controls: LoraControls, model: Shapes) -> Shapes:
    """Name and shape of every tensor of a control: A (rank, in) and B (out, rank) for a layer (out, in)."""
    expected: Shapes = {}
    for tensor, shape in model.items():
        module = tensor.removesuffix(".weight")
        if module == tensor or module.rpartition(".")[2] not in controls.target_modules or len(shape) != 2:
            continue
        expected[f"{_PREFIX}{module}.lora_A.weight"] = (controls.rank, shape[1])
        expected[f"{_PREFIX}{module}.lora_B.weight"] = (shape[0], controls.rank)
    return expected
