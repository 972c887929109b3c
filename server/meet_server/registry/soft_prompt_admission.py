"""Whether the soft prompts of a bundle may be served: checks their files against the bundle's model.

What is served are rows of the model's embedding matrix; the file says what was trained. They must be the same,
lie within the matrix, and be out of the tokenizer's reach. Only those rows are read, not the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from meet_bundle import Bundle, Preference, SoftPromptControls
from meet_server.errors import ServerError
from meet_server.registry.admission import ControlRefused

if TYPE_CHECKING:
    import torch

WEIGHTS = "soft_prompt.safetensors"
TENSOR = "soft_prompt"
ALLOWED_FILES = frozenset({WEIGHTS, "README.md"})

# What models call the output layer, where it is not the embedding matrix itself.
_OUTPUT_LAYERS = frozenset({"lm_head", "embed_out", "output"})


class Embeddings:
    """The model's embedding matrix, (V, H), of which rows are read on demand."""

    def __init__(self, model_path: Path) -> None:
        """Raises ServerError where there is none, or no telling which it is."""
        self.vocab_size = _vocab_size(model_path)
        found: list[tuple[Path, str, tuple[int, ...]]] = []
        for file, name, shape in _tensors(model_path):
            of_vocabulary = len(shape) == 2 and shape[0] == self.vocab_size
            if of_vocabulary and not _OUTPUT_LAYERS.intersection(name.split(".")):
                found.append((file, name, shape))
        if len(found) != 1:
            said = ", ".join(name for _, name, _ in found) or "none"
            raise ServerError(
                f"{model_path}: one tensor of {self.vocab_size} rows must be the embedding matrix; there is {said}"
            )
        self._file, self._name, (_, self.width) = found[0]

    def rows(self, first: int, num: int) -> torch.Tensor:
        """Rows `first` to `first + num - 1`, (num, H)."""
        with safe_open(self._file, framework="pt") as tensors:
            rows: torch.Tensor = tensors.get_slice(self._name)[first : first + num]
        return rows


def check_soft_prompts(bundle: Bundle) -> None:
    """Raises ControlRefused, naming the control, for the first that the model's own rows do not bear out.

    Raises ServerError where the tokenizer knows a virtual token: a user could write it.
    """
    manifest = bundle.manifest
    embeddings = Embeddings(bundle.model_path)
    runs = {preference: manifest.virtual_token_ids(preference.name) for preference in manifest.preferences}
    _check_tokenizer(bundle.model_path, min(ids[0] for ids in runs.values()))
    for preference, ids in runs.items():
        _check(preference.name, bundle.path / preference.path, ids, embeddings)


def check_soft_prompt_files(
    files: Mapping[str, bytes], preference: Preference, controls: SoftPromptControls, bundle: Bundle
) -> None:
    """As `check_soft_prompts`, for one that is in no folder yet. What is served are rows that the model has.

    Raises ControlRefused.
    """
    num, first = controls.num_virtual_tokens, bundle.manifest.first_virtual_id
    embeddings, begin, name = Embeddings(bundle.model_path), preference.first_token_id, preference.name
    if begin is None or first is None or begin < first or begin + num > embeddings.vocab_size:
        raise ControlRefused(
            name,
            f"its {num} virtual tokens begin at {begin}, and the model has rows for virtual "
            f"tokens {first} to {embeddings.vocab_size - 1} alone: a soft prompt beyond them cannot be added while "
            "serving; train it into a bundle, and serve that",
        )
    ids = tuple(range(begin, begin + num))
    if extra := sorted(set(files) - ALLOWED_FILES):
        raise ControlRefused(name, f"it holds {', '.join(extra)}; a soft prompt is {WEIGHTS} and nothing else")
    from safetensors.torch import load

    try:
        tensors = load(files.get(WEIGHTS, b""))
    except SafetensorError as error:
        raise ControlRefused(name, f"{WEIGHTS} is no safetensors file: {error}") from None
    if list(tensors) != [TENSOR] or not tensors[TENSOR].is_floating_point():
        raise ControlRefused(name, f"{WEIGHTS} must hold {TENSOR}, of floating point, and nothing else")
    _check_rows(name, tensors[TENSOR], ids, embeddings)


def _check(name: str, folder: Path, ids: tuple[int, ...], embeddings: Embeddings) -> None:
    if ids[-1] >= embeddings.vocab_size:
        raise ControlRefused(
            name, f"its virtual tokens end at {ids[-1]}; the model's vocabulary ends at {embeddings.vocab_size - 1}"
        )
    _check_rows(name, _read(name, folder), ids, embeddings)


def _check_rows(name: str, trained: torch.Tensor, ids: tuple[int, ...], embeddings: Embeddings) -> None:
    wanted = (len(ids), embeddings.width)
    if tuple(trained.shape) != wanted:
        raise ControlRefused(name, f"{TENSOR} has shape {tuple(trained.shape)}; the model needs {wanted}")
    rows = embeddings.rows(ids[0], len(ids))
    if not trained.to(rows.dtype).equal(rows):
        raise ControlRefused(name, f"{WEIGHTS} differs from rows {ids[0]} to {ids[-1]} of the model's embeddings")


def _read(name: str, folder: Path) -> torch.Tensor:
    if not folder.is_dir():
        raise ControlRefused(name, f"{folder} is no folder")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if extra := sorted(found - ALLOWED_FILES):
        raise ControlRefused(name, f"{folder} holds {', '.join(extra)}; a soft prompt is {WEIGHTS} and nothing else")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            names = list(tensors.keys())
            if names != [TENSOR]:
                raise ControlRefused(name, f"{WEIGHTS} holds {', '.join(names)}; {TENSOR} and nothing else is needed")
            tensor: torch.Tensor = tensors.get_tensor(TENSOR)
    except (SafetensorError, OSError) as error:
        raise ControlRefused(name, f"{WEIGHTS} is no safetensors file: {error}") from None
    if not tensor.is_floating_point():
        raise ControlRefused(name, f"{TENSOR} is {tensor.dtype}; floating point is needed")
    return tensor


def _check_tokenizer(model_path: Path, first: int) -> None:
    file = model_path / "tokenizer.json"
    if not file.is_file():
        return  # what text becomes is checked with each request too
    try:
        tokenizer = json.loads(file.read_bytes())
        vocabulary = tokenizer["model"]["vocab"]
        listed = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        last = max([*listed, *(token["id"] for token in tokenizer.get("added_tokens", []))])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{file} cannot be read: {error!r}") from None
    if last >= first:
        raise ServerError(
            f"{file}: the tokenizer knows token {last}, and virtual tokens begin at {first}: users could write them"
        )


def _vocab_size(model_path: Path) -> int:
    file = model_path / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_bytes())
        return int((config.get("text_config") or config)["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"{file} says no vocabulary size: {error!r}") from None


def _tensors(model_path: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    for file in sorted(model_path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    yield file, name, tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ServerError(f"{file} is no safetensors file: {error}") from None
