"""Writes the bundle: the MEET model, the controls, a probe of each, and how it was made."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from meet_bundle import BaseModelSource, Bundle, Manifest, Preference, open_bundle, seal, writing_bundle
from meet_training.config import TrainConfig
from meet_training.controls.control import ControlSet
from meet_training.data.render import Rendered
from meet_training.probe import make_probe
from meet_training.stages.optimise import Curve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIBRARIES = ("meet", "torch", "transformers", "peft", "tokenizers")
UNKNOWN_DIGEST = "0" * 64  # `seal` puts the true ones in


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
    curves: dict[str, Curve]
    seconds: dict[str, float]


def export(trained: Trained, config: TrainConfig, *, replace: bool = False) -> Bundle:
    """Writes the bundle atomically and opens it again. Raises BundleError where the output exists.

    The manifest holds nothing that differs between two runs of one seed; times are in `report/training.json`.
    """
    with writing_bundle(config.output, replace=replace) as folder:
        trained.model.to(trained.dtype).save_pretrained(folder / "model")
        trained.tokenizer.save_pretrained(folder / "model")
        for control, name in enumerate(trained.controls.names):
            trained.controls.save(control, folder / "controls" / name)
        _make_readable(folder)
        preferences = _preferences(folder, trained, config)
        seal(folder, _manifest(preferences, trained, config))
        _write_report(folder / "report", trained)
    return open_bundle(config.output)


def _preferences(folder: Path, trained: Trained, config: TrainConfig) -> tuple[Preference, ...]:
    from transformers import AutoModelForCausalLM

    # Read back, so that the probes are of the files.
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
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
            trained_examples=len(trained.examples[name]),
            probe=make_probe(model, folder / "controls" / name, trained.examples[name]),
        )
        for name, said in config.preferences.items()
    )


def _manifest(preferences: tuple[Preference, ...], trained: Trained, config: TrainConfig) -> Manifest:
    resolved = config.model_dump(mode="json", exclude={"output"})
    # Where the data lay is this machine's business; its digest says what it was.
    for data in resolved["data"]:
        data["path"] = Path(data["path"]).name
    made: dict[str, Any] = {
        "config": resolved,
        "data_digest": trained.data_digest,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "final_loss": {stage: _final_losses(curve) for stage, curve in trained.curves.items()},
    }
    return Manifest(
        name=config.name,
        base=trained.base,
        model_digest=UNKNOWN_DIGEST,
        model_dtype=str(trained.dtype).removeprefix("torch."),
        controls=trained.controls.describe(),
        preferences=preferences,
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
    report = {
        "seconds": {phase: round(seconds, 1) for phase, seconds in trained.seconds.items()},
        "losses": {stage: curve.losses for stage, curve in trained.curves.items()},
    }
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _make_readable(folder: Path) -> None:
    # safetensors writes files that only their owner may read; the server may run as somebody else.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
