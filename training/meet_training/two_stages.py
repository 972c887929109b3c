"""One run: what it was given, and its two stages, each entered where the checkpoint says.

Writes no bundle: `run` does, with what both stages leave behind.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from meet_bundle import open_bundle
from meet_training.base_model import (
    check_causal_model,
    describe_base,
    digest_beside_weights,
    end_ids,
    load_causal,
    load_tokenizer,
    own_dtype,
    shape_of,
)
from meet_training.callbacks import Callback
from meet_training.config import TrainConfig
from meet_training.controls.attach import attach
from meet_training.controls.model_lora import ModelLora
from meet_training.data import forms
from meet_training.data.batches import Schedule, make_schedule
from meet_training.data.render import Rendered, check_tokenizer, render_all
from meet_training.export import Trained
from meet_training.positions import beyond_positions, check_max_length, check_room_for_replies, positions_of
from meet_training.stages import uncontrolled
from meet_training.stages.checkpoint import CheckpointFolder, run_key
from meet_training.stages.disk_space import lacking_space, needed_bytes
from meet_training.stages.loop_settings import loop_settings
from meet_training.stages.machine import Machine, choose_dtype
from meet_training.stages.objective import Objective
from meet_training.stages.reference import (
    keep_reference,
    kept_reference,
    preference_objective,
    reference_logprobs,
)
from meet_training.stages.resumable import Record, StageParts, run_stage
from meet_training.stages.sharding import shard
from meet_training.stages.tune_controls import control_groups, freeze_all_but_controls, known
from meet_training.stages.tune_model import model_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from meet_training.controls.control import ControlSet
    from meet_training.stages_config import Stage1Config, Stage2Config


class Run:
    """What a run was given, and the two stages as methods that can be entered half-way."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        examples: dict[str, list[forms.Example]],
        callbacks: Callback | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.config = config.resolved()
        self.folder = folder
        self.machine = machine or Machine.join(config.device)
        self.sharded = config.speed.sharding == "full" and self.machine.num_processes > 1
        self.dtype = choose_dtype(config.precision, self.machine.device)
        model_config = check_causal_model(folder)
        self.own_dtype = own_dtype(model_config)
        shape = shape_of(folder, model_config)
        self.positions = positions_of(shape)
        check_max_length(config, self.positions)
        self._needed_bytes = needed_bytes(config, shape, self.own_dtype)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        check_tokenizer(self.tokenizer, config.base)
        self.end_ids = end_ids(folder, self.tokenizer)
        self.callbacks = callbacks or Callback()
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        examples = forms.for_objective(examples, self.config)
        self.rendered = self.render(examples)
        self._num_given = {label: len(group) for label, group in examples.items()}
        self.data_digest = forms.digest(examples)
        self.base = describe_base(config.base, folder)
        self.record = Record()
        self.objective = Objective()
        self._num_uncontrolled = uncontrolled.num_needed(self.config, self.rendered)
        from_data = uncontrolled.from_data(self.config, self._num_uncontrolled)
        rendered = self._rendered(from_data, "uncontrolled examples rendered")
        self.uncontrolled = [example for group in rendered.values() for example in group]
        if self._num_uncontrolled and not from_data:
            asked = uncontrolled.prompts_asked(self.rendered, self._num_uncontrolled)
            check_room_for_replies(config, asked, self.positions)
        started_from = open_bundle(config.start_from, verify=False) if config.start_from else None
        content = {
            "data": self.data_digest,
            "beside the base's weights": digest_beside_weights(folder, model_config),
            "uncontrolled.data": forms.digest(from_data),
            "start_from": started_from.manifest.digest if started_from else None,
        }
        key = run_key(self.config, content, self.base, self.dtype, self.machine.device)
        self.checkpoints = CheckpointFolder(config.output, key, config.checkpoint_every_s)

    def render(self, examples: dict[str, list[forms.Example]]) -> dict[str, list[Rendered]]:
        """What is trained on, by preference. Raises TrainingError."""
        return self._rendered(examples)

    def _rendered(
        self, examples: dict[str, list[forms.Example]], what: str = "examples rendered"
    ) -> dict[str, list[Rendered]]:
        """Those that are not too long, telling how many are done, and of `what`."""
        tell = partial(self.callbacks.on_part, what)
        return render_all(examples, self.tokenizer, self.config.max_length, self.end_ids, tell)

    def both_stages(self) -> Trained:
        """Both stages, and what they leave behind for the bundle."""
        model, controls = self.tune()
        if self.machine.is_main:  # of a sharded model the others have their parts alone
            controls.detach(model)
        return Trained(
            model=model,
            tokenizer=self.tokenizer,
            controls=controls,
            examples=self.rendered,
            base=self.base,
            dtype=self.own_dtype,
            data_digest=self.data_digest,
            record=self.record,
        )

    def tune(self) -> tuple[PreTrainedModel, ControlSet]:
        """What comes before, stage 1, then stage 2, each from where the checkpoint says. The controls are attached."""
        self._tell_what_is_left_out()
        self.warn()
        saved = self.checkpoints.load(on_other=self._tell_of_other_checkpoint)
        self.machine.check_alike("checkpoint", (saved["stage"], saved["step"]) if saved else None)
        if saved:
            self.record = Record.from_state(saved["record"])
        self.ask_the_base()
        controls_state = saved["parts"]["controls"] if saved else None
        if saved is None or saved["stage"] == "stage1":
            controls_state = self.stage1(saved)
            saved = None
        return self.stage2(controls_state, saved)

    def _tell_what_is_left_out(self) -> None:
        """Of each preference, how many examples are longer than `max_length`, where there are some."""
        kept = {label: group for label, group in self.rendered.items() if label in self._num_given}
        nums = {label: (self._num_given[label] - len(group), self._num_given[label]) for label, group in kept.items()}
        if any(num for num, _ in nums.values()):
            of_each = ", ".join(f"{label} {num} of {num_given}" for label, (num, num_given) in nums.items())
            self.callbacks.on_phase(f"examples longer than max_length ({self.config.max_length}) left out: {of_each}")

    def warn(self) -> None:
        """Of what may end a run when most of it is done, or spoil what it makes."""
        examples = [example for group in self.rendered.values() for example in group]
        lacking = lacking_space(self.config.output.parent, self._needed_bytes, self.checkpoints.num_bytes)
        for warning in (beyond_positions(self.config, examples, self.positions), lacking):
            if warning is not None:
                self.callbacks.on_warning(warning)

    def _tell_of_other_checkpoint(self) -> None:
        self.callbacks.on_phase(
            "beginning anew: the checkpoint beside the output is of another configuration, other data or another base"
        )

    def ask_the_base(self) -> None:
        """What the base itself says, where a stage needs it: replies of its own, and how likely it finds pairs."""
        pairs = [r for group in self.rendered.values() for r in group if r.rejected_ids is not None]
        wants_replies = bool(self._num_uncontrolled) and not self.uncontrolled
        wants_pairs = self.config.objective.kind == "preference" and not self._pairs_are_known(pairs)
        if not wants_replies and not wants_pairs:
            return
        model = self.load_model(self.dtype)
        model.requires_grad_(False)
        self.shard(model)
        if wants_replies:
            self.callbacks.on_phase("sampling replies of the base itself")
            # A sharded model needs all processes at each step of sampling; they draw the same.
            with nullcontext() if self.sharded else self.machine.main_first():
                self.uncontrolled = uncontrolled.from_base(
                    self.config,
                    model,
                    self.rendered,
                    self._num_uncontrolled,
                    end_ids=self.end_ids,
                    pad_id=self.pad_id,
                    file=self.checkpoints.file("base_replies.json"),
                )
        if wants_pairs:
            self._tell_of_pairs()
            reference = reference_logprobs(
                model,
                pairs,
                self.config.tokens_per_pass,
                pad_id=self.pad_id,
                machine=self.machine,
                sharded=self.sharded,
            )
            if self.machine.is_main:
                keep_reference(self._reference_file, reference)
            self.objective = preference_objective(self.config, reference)

    @property
    def _reference_file(self) -> Path:
        return self.checkpoints.file("reference.json")

    def _pairs_are_known(self, pairs: list[Rendered]) -> bool:
        """Takes how likely the base finds them from what a run before this kept, where it did."""
        kept = kept_reference(self._reference_file, pairs, self.machine)
        if kept is not None:
            self.objective = preference_objective(self.config, kept)
        return kept is not None

    def _tell_of_pairs(self) -> None:
        paired = {label: sum(r.rejected_ids is not None for r in group) for label, group in self.rendered.items()}
        nums = ", ".join(f"{label} {num} of {len(self.rendered[label])}" for label, num in paired.items())
        self.callbacks.on_phase(f"log-probabilities under the base of all pairs; examples with a pair: {nums}")

    def stage1(self, saved: dict[str, Any] | None = None) -> dict[str, Any]:
        """Tunes the controls on the frozen model; returns their state."""
        stage = self.config.stage1
        # The frozen model is held in the dtype of the arithmetic, so nothing is cast on the way.
        model = self.load_model(self.dtype)
        controls = self.attach(model)
        if not stage.epochs:
            return controls.state()
        self.shard(model, controls)
        freeze_all_but_controls(model, controls)
        schedule = self.schedule("stage1", stage)
        groups = control_groups(
            controls,
            schedule,
            learning_rate=known(stage.learning_rate),
            warmup_share=stage.warmup_share,
            max_grad_norm=stage.max_grad_norm,
        )
        self._run("stage1", StageParts(model, controls, schedule, groups, learning=controls.names), stage, saved)
        return controls.state()

    def stage2(
        self, controls_state: dict[str, Any] | None, saved: dict[str, Any] | None = None
    ) -> tuple[PreTrainedModel, ControlSet]:
        """Fine-tunes the model with the controls of stage 1; returns both, ready to be detached."""
        stage = self.config.stage2
        whole = stage.epochs and stage.model == "whole"
        model = self.load_model(self._stage2_dtype)
        controls = self.attach(model)
        if controls_state is not None:
            controls.load_state(controls_state)
        if stage.epochs:
            model_lora = None if whole else ModelLora(model, stage, self.config.seed)
            self.shard(model, controls, model_lora)
            schedule = self.schedule("stage2", stage)
            groups = model_groups(model, model_lora, controls, schedule, stage)
            learning = controls.names if stage.controls == "joint" else ()
            parts = StageParts(model, controls, schedule, groups, learning, model_lora or model)
            self._run("stage2", parts, stage, saved)
            if self.sharded:
                put_together = self._put_together(parts, model_lora is not None)
                if put_together is None:
                    return model, controls
                model, controls, model_lora = put_together
            if model_lora is not None:
                model_lora.merge(model)
            if stage.centre:
                controls.centre([k for k, name in enumerate(controls.names) if name in self.config.opposed])
        return model, controls

    @property
    def _stage2_dtype(self) -> torch.dtype:
        """What stage 2 holds the model in, where it does anything: float32 where all of it is tuned, since small steps
        are lost in bfloat16 weights, or where the arithmetic is float32. Else as it is kept in its files."""
        stage = self.config.stage2
        in_float32 = stage.epochs and (stage.model == "whole" or self.dtype == torch.float32)
        return torch.float32 if in_float32 else self.own_dtype

    def shard(self, model: PreTrainedModel, controls: ControlSet | None = None, lora: ModelLora | None = None) -> None:
        """Leaves this process its part of a model, where `speed.sharding` says so; what is learned in its place stays
        whole. Before optimisers are made."""
        if self.sharded:
            names = controls.names if controls else ()
            kept = [parameter for k in range(len(names)) for parameter in controls.parameters_of(k)] if controls else []
            shard(model, [*kept, *(lora.parameters() if lora else [])], self.machine)

    def _put_together(
        self, parts: StageParts, by_lora: bool
    ) -> tuple[PreTrainedModel, ControlSet, ModelLora | None] | None:
        """What a stage made of a sharded model, as one that is not, in main memory; the main process alone has it, the
        others None."""
        state = parts.state(keep=self.machine.is_main, optimisers=False)
        if not self.machine.is_main:
            return None
        model = self.load_model(self._stage2_dtype)
        controls = self.attach(model)
        lora = ModelLora(model, self.config.stage2, self.config.seed) if by_lora else None
        StageParts(model, controls, parts.schedule, [], tuned=lora or model).load_state(state)
        return model, controls, lora

    def load_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The base, anew from its files."""
        options = {"attn_implementation": self.config.speed.attention} if self.config.speed.attention else {}
        model = load_causal(self.folder, dtype, **options)
        if not self.sharded:  # then each device gets its part, when the parts are known
            model = model.to(self.machine.device)
        model.train()
        if self.config.speed.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def attach(self, model: PreTrainedModel) -> ControlSet:
        """The controls that the run starts from, on a model."""
        return attach(model, self.config, self.tokenizer, self.base)

    def _run(
        self, name: str, parts: StageParts, stage: Stage1Config | Stage2Config, saved: dict[str, Any] | None
    ) -> None:
        settings = loop_settings(
            self.config,
            name,
            stage,
            parts.model,
            machine=self.machine,
            dtype=self.dtype,
            pad_id=self.pad_id,
            objective=self.objective,
            num_controls=len(self.rendered),
            sharded=self.sharded,
        )
        run_stage(parts, settings, self.record, self.checkpoints, self.callbacks, saved)

    def schedule(self, name: str, stage: Stage1Config | Stage2Config) -> Schedule:
        return make_schedule(
            self.rendered,
            epochs=stage.epochs,
            batch_size=stage.batch_size,
            seed=f"{self.config.seed}/{name}",
            uncontrolled=self.uncontrolled,
            uncontrolled_share=stage.uncontrolled_share,
        )
