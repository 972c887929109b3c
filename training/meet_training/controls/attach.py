"""From a configuration to the controls that a run starts from, of whatever kind. The stages know none of the kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meet_bundle import BaseModelSource, open_bundle
from meet_training.base_model import is_same_base
from meet_training.config import TrainConfig
from meet_training.controls.control import ControlSet
from meet_training.controls.lora import LoraTuning
from meet_training.controls.soft_prompt import SoftPromptTuning
from meet_training.controls_config import LoraConfig
from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def attach(
    model: PreTrainedModel, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, base: BaseModelSource
) -> ControlSet:
    """New controls on a model, or those of the bundle that `start_from` names. Raises TrainingError."""
    names, kind = tuple(config.preferences), config.controls
    controls: ControlSet
    if isinstance(kind, LoraConfig):
        controls = LoraTuning(model, names, kind, config.seed)
    else:
        texts = {
            name: kind.start_text.get(name) or said.instruction or said.description or name
            for name, said in config.preferences.items()
        }
        controls = SoftPromptTuning(model, names, kind, config.seed, tokenizer, texts)
    if config.start_from is not None:
        _start_from(controls, config, base)
    return controls


def _start_from(controls: ControlSet, config: TrainConfig, base: BaseModelSource) -> None:
    assert config.start_from is not None  # noqa: S101 - its one caller has asked
    bundle = open_bundle(config.start_from)
    manifest = bundle.manifest
    if not is_same_base(manifest.base, base):
        raise TrainingError(f"start_from: {config.start_from} was made from {manifest.base.source}, not from this base")
    if manifest.controls.kind != config.controls.kind:
        raise TrainingError(
            f"start_from: {config.start_from} has {manifest.controls.kind} controls; `controls` asks for "
            f"{config.controls.kind}"
        )
    known = {preference.name for preference in manifest.preferences}
    if missing := [name for name in controls.names if name not in known]:
        raise TrainingError(
            f"start_from: {config.start_from} has no {', '.join(missing)}; it has {', '.join(sorted(known))}"
        )
    for k, name in enumerate(controls.names):
        controls.load(k, bundle.control_path(name))
