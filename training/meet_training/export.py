"""Writes the bundle: the MEET model, the controls, a probe of each, and how it was made."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from meet_bundle import BaseModelSource, Manifest, Preference, Probe, seal, writing_bundle
from meet_training.config import TrainConfig
from meet_training.controls.control import ControlSet
from meet_training.controls.trained import load_control
from meet_training.curves import draw_curves
from meet_training.data.render import Rendered
from meet_training.probe import make_probe
from meet_training.stages.checkpoint import writing_to
from meet_training.stages.optimise import Curve
from meet_training.stages.resumable import Record
from meet_training.stages.without_generation_config import without_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIBRARIES = ("meet", "torch", "transformers", "peft", "tokenizers")
CURVES_NAME = "training.svg"
GENERATION = "generation_config.json"
UNKNOWN_DIGEST = "0" * 64  # `seal` puts the true ones in
NO_PROBE = Probe(
    token_ids=(0, 0), start=1, controlled=(0.0,), uncontrolled=(0.0,), dtype="float32"
)  # until there is one


@dataclass(frozen=True, slots=True)
class Trained:
    """What both stages leave behind for the bundle."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    controls: ControlSet
    examples: dict[str, list[Rendered]]
    base: BaseModelSource
    dtype: torch.dtype  # of the exported weights: the base's own
    data_digest: str
    record: Record


def export(trained: Trained, config: TrainConfig, *, replace: bool = False) -> None:
    """Writes the bundle atomically. Raises BundleError where the output exists, TrainingError where writing fails.

    What was trained is let go of once it is written: the probes need memory for all of it again, in float32.
    The manifest holds nothing that differs between two runs of one seed; times are in `report/training.json`.
    """
    with writing_to(config.output), writing_bundle(config.output, replace=replace) as folder:
        _save_model(trained.model.to(trained.dtype), folder / "model")
        trained.tokenizer.save_pretrained(folder / "model")
        for control, name in enumerate(trained.controls.names):
            trained.controls.save(control, folder / "controls" / name)
        _write_report(folder / "report", trained)
        _make_readable(folder)
        trained.model.to("meta")
        seal(folder, _with_probes(folder, _manifest(trained, config), trained))


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes the model, and the base's generation configuration as it is.

    Transformers refuses to save some of those that it reads (`temperature` without `do_sample`), which bases of the
    hub have; engines take from them what they need.
    """
    with without_generation_config(model) as generation:
        model.save_pretrained(folder)
    generation.to_json_file(folder / GENERATION, keys_to_pop=["compile_config"])


def _with_probes(folder: Path, manifest: Manifest, trained: Trained) -> Manifest:
    from transformers import AutoModelForCausalLM

    # Read back, so that the probes are of the files.
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    num_tokens = manifest.first_virtual_id

    def proved(preference: Preference) -> Preference:
        control = load_control(folder, manifest, preference.name)
        probe = make_probe(model, control, trained.examples[preference.name], num_tokens)
        return preference.model_copy(update={"probe": probe})

    return manifest.model_copy(update={"preferences": tuple(map(proved, manifest.preferences))})


def _preferences(trained: Trained, config: TrainConfig) -> tuple[Preference, ...]:
    return tuple(
        Preference(
            name=name,
            description=said.description,
            aliases=said.aliases,
            axis=said.axis,
            opposite=said.opposite,
            instruction=said.instruction,
            path=f"controls/{name}",
            digest=UNKNOWN_DIGEST,
            first_token_id=trained.controls.first_token_id(control),
            trained_examples=len(trained.examples[name]),
            probe=NO_PROBE,
        )
        for control, (name, said) in enumerate(config.preferences.items())
    )


def _manifest(trained: Trained, config: TrainConfig) -> Manifest:
    made: dict[str, Any] = {
        "config": config.without_folders().model_dump(mode="json", exclude={"output", "trackers", "log_folder"}),
        "data_digest": trained.data_digest,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "final_loss": {stage: _final_losses(curve) for stage, curve in trained.record.curves.items()},
    }
    return Manifest(
        name=config.name,
        base=trained.base,
        model_digest=UNKNOWN_DIGEST,
        model_dtype=str(trained.dtype).removeprefix("torch."),
        controls=trained.controls.describe(),
        preferences=_preferences(trained, config),
        default=config.default,
        verbosity=config.verbosity,
        effort=config.effort,
        made=made,
        files={},
    )


def _final_losses(curve: Curve) -> dict[str, float]:
    """Mean loss of each control over its last tenth of steps."""
    last = {name: losses[-max(1, len(losses) // 10) :] for name, losses in curve.losses.items()}
    return {name: round(sum(losses) / len(losses), 4) for name, losses in last.items()}


def _write_report(folder: Path, trained: Trained) -> None:
    folder.mkdir()
    report: dict[str, Any] = {
        "seconds": {phase: round(seconds, 1) for phase, seconds in trained.record.seconds.items()},
        "losses": {stage: curve.losses for stage, curve in trained.record.curves.items()},
    }
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / CURVES_NAME).write_text(draw_curves(report["losses"]), encoding="utf-8")


def _make_readable(folder: Path) -> None:
    # safetensors writes files that only their owner may read; the server may run as somebody else.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
