"""The whole of training on one screen: data -> stage 1 -> stage 2 -> bundle, resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from meet_bundle import BaseModelSource, Bundle, BundleError
from meet_bundle.digests import folder_entries, listing_digest
from meet_training.base_model import check_causal_model, resolve_base
from meet_training.config import TrainConfig
from meet_training.controls.shared_lora import SharedLora
from meet_training.data import forms
from meet_training.data.batches import make_schedule
from meet_training.data.render import Rendered, check_tokenizer, render_all
from meet_training.export import Trained, export
from meet_training.stages.checkpoint import CheckpointFolder
from meet_training.stages.machine import choose_device, choose_dtype
from meet_training.stages.optimise import Curve, LoopConfig, ParameterGroup, TrainProgress, optimise
from meet_training.stages.tune_controls import check_that_all_learned, control_groups, freeze_all_but_controls
from meet_training.stages.tune_model import joint_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnProgress = Callable[[TrainProgress], None]
OnStep = Callable[[str], None]


def train(
    config: TrainConfig,
    *,
    replace: bool = False,
    on_progress: OnProgress | None = None,
    on_step: OnStep | None = None,
) -> Bundle:
    """Trains both stages and writes the bundle; goes on where a killed run of the same configuration stood.

    Raises TrainingError or BundleError before any work where the configuration, the data, the base or the
    output cannot be used. Nothing appears at `config.output` until the whole bundle is there.
    """
    if config.output.exists() and not replace:
        raise BundleError(f"output: {config.output} exists; choose another output or allow it to be replaced")
    examples = forms.load_examples(config)
    folder = resolve_base(config.base, on_step=on_step)
    run = Run(config, folder, examples, on_progress)
    trained = run.both_stages()
    if on_step:
        on_step(f"writing {config.output}")
    bundle = export(trained, config, replace=replace)
    run.checkpoints.remove()
    return bundle


class Run:
    """One run: what it was given, and the two stages as methods that can be entered half-way."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        examples: dict[str, list[forms.Example]],
        on_progress: OnProgress | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        self.config = config
        self.folder = folder
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.precision, self.device)
        self.own_dtype = _own_dtype(check_causal_model(folder))
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        check_tokenizer(self.tokenizer, config.base)
        self.rendered: dict[str, list[Rendered]] = render_all(examples, self.tokenizer, config.max_length)
        self.data_digest = forms.digest(examples)
        self.base = _describe_base(config.base, folder)
        self.curves = {"stage1": Curve(), "stage2": Curve()}
        self.seconds: dict[str, float] = {"stage1": 0.0, "stage2": 0.0}
        self.checkpoints = CheckpointFolder(config.output, self._key(), config.checkpoint_every_s)
        self._on_progress = on_progress

    def both_stages(self) -> Trained:
        """Stage 1, then stage 2, each from where the checkpoint says."""
        saved = self.checkpoints.load()
        if saved:
            self.curves = {stage: Curve(losses) for stage, losses in saved["losses"].items()}
            self.seconds = saved["seconds"]
        if saved is None or saved["stage"] == "stage1":
            controls_state = self.stage1(saved)
            saved = None
        else:
            controls_state = saved["controls"]
        model, controls = self.stage2(controls_state, saved)
        controls.detach(model)
        return Trained(
            model=model,
            tokenizer=self.tokenizer,
            controls=controls,
            examples=self.rendered,
            base=self.base,
            dtype=self.own_dtype,
            data_digest=self.data_digest,
            curves=self.curves,
            seconds=self.seconds,
        )

    def stage1(self, saved: dict[str, Any] | None = None) -> dict[str, Any]:
        """Tunes the controls on the frozen model; returns their state."""
        stage = self.config.stage1
        model = self.load_model(self.dtype)
        controls = self.attach(model)
        freeze_all_but_controls(model, controls)
        schedule = make_schedule(
            self.rendered, epochs=stage.epochs, batch_size=stage.batch_size, seed=f"{self.config.seed}/stage1"
        )
        groups = control_groups(
            controls,
            schedule,
            learning_rate=stage.learning_rate,
            warmup_share=stage.warmup_share,
            max_grad_norm=stage.max_grad_norm,
        )
        # The frozen model is held in the dtype of the arithmetic, so nothing is cast on the way.
        self._optimise("stage1", model, controls, schedule, groups, saved, autocast=False)
        if schedule.num_steps:
            check_that_all_learned(controls)
        return controls.state()

    def stage2(
        self, controls_state: dict[str, Any], saved: dict[str, Any] | None = None
    ) -> tuple[PreTrainedModel, SharedLora]:
        """Fine-tunes the model jointly with the controls of stage 1; returns both."""
        stage = self.config.stage2
        model = self.load_model(torch.float32)  # small steps are lost in bfloat16 weights
        controls = self.attach(model)
        controls.load_state(controls_state)
        schedule = make_schedule(
            self.rendered, epochs=stage.epochs, batch_size=stage.batch_size, seed=f"{self.config.seed}/stage2"
        )
        if schedule.num_steps:
            groups = joint_groups(model, controls, schedule, stage)
            autocast = self.dtype == torch.bfloat16
            self._optimise("stage2", model, controls, schedule, groups, saved, autocast=autocast)
        return model, controls

    def load_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The base, anew from its files."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(self.device)
        model.train()
        return model

    def attach(self, model: PreTrainedModel) -> SharedLora:
        """Untrained controls on a model."""
        return SharedLora(model, tuple(self.config.preferences), self.config.controls, self.config.seed)

    def _optimise(
        self,
        name: str,
        model: PreTrainedModel,
        controls: SharedLora,
        schedule: Any,
        groups: list[ParameterGroup],
        saved: dict[str, Any] | None,
        *,
        autocast: bool,
    ) -> None:
        start, spent, since = 0, self.seconds[name], time.monotonic()
        if saved:
            start = saved["step"]
            controls.load_state(saved["controls"])
            if saved["model"] is not None:
                model.load_state_dict(saved["model"])
            for group, own in zip(groups, saved["groups"], strict=True):
                group.load_state(own)

        def state(step: int) -> dict[str, Any]:
            self.seconds[name] = spent + time.monotonic() - since
            return {
                "stage": name,
                "step": step,
                "controls": controls.state(),
                "model": model.state_dict() if name == "stage2" else None,
                "groups": [group.state() for group in groups],
                "losses": {stage: curve.losses for stage, curve in self.curves.items()},
                "seconds": self.seconds,
            }

        config = LoopConfig(
            stage=name,
            tokens_per_pass=self.config.tokens_per_pass,
            pad_id=self.tokenizer.pad_token_id or 0,
            device=self.device,
            autocast=autocast,
            seed=self.config.seed,
        )
        optimise(
            model,
            controls,
            schedule,
            groups,
            config,
            curve=self.curves[name],
            start=start,
            after_step=lambda step: self.checkpoints.save_if_due(lambda: state(step)),
            on_progress=self._on_progress,
        )
        self.seconds[name] = spent + time.monotonic() - since

    def _key(self) -> str:
        resolved = self.config.model_dump(mode="json", exclude={"output", "data", "checkpoint_every_s"})
        parts = [
            resolved,
            self.data_digest,
            self.base.model_dump(mode="json"),
            str(self.dtype),
            str(self.device),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _own_dtype(base_config: Any) -> torch.dtype:
    """What the base's weights are kept in, and so the MEET model's."""
    dtype = getattr(base_config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def _describe_base(source: str, folder: Path) -> BaseModelSource:
    if not folder.is_dir():
        return BaseModelSource(source=source)
    weights = {
        name: entry
        for name, entry in folder_entries(folder.parent, (folder.name,)).items()
        if name.endswith(".safetensors")
    }
    return BaseModelSource(source=source, digest=listing_digest(weights, folder.name))
