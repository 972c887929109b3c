"""The one training loop, shared by both stages. Knows no preference by name and writes no file.

Every group of parameters (a control, the language model) has its own optimiser, schedule and clipping, so that
none touches another's parameters or statistics. Several processes share the passes of every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meet_training.controls.control import ControlSet
from meet_training.data.batches import UNCONTROLLED, Item, Schedule, passes, tokens_on_the_way
from meet_training.errors import TrainingError
from meet_training.stages.layout import Batch, lay_out
from meet_training.stages.machine import Machine, shares
from meet_training.stages.objective import Objective, StepSizes
from meet_training.stages.prompt_cache import PromptCache
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages.sharding import part_of

UNCONTROLLED_NAME = "uncontrolled"


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a run is. `loss` is the mean over controls of the last step, and `losses` that of each, in nats per
    reply token where the objective is likelihood. `overall_step` goes on counting from one stage to the next;
    `learning_rates` are those of each control that took part, and of `model` in stage 2."""

    stage: str
    step: int
    num_steps: int
    loss: float
    tokens_per_s: float
    seconds_left: float
    losses: dict[str, float] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    overall_step: int = 0


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """How one group of parameters is optimised. `num_steps` is how many steps it takes part in."""

    name: str
    learning_rate: float
    num_steps: int
    warmup_share: float
    max_grad_norm: float
    weight_decay: float = 0.0


class ParameterGroup:
    """Parameters with an AdamW of their own (Loshchilov & Hutter 2019), warm-up, linear decay and clipping."""

    def __init__(self, config: GroupConfig, parameters: list[nn.Parameter]) -> None:
        self.config = config
        self.parameters = parameters
        self._optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def takes_part(self, number: int) -> bool:
        """Whether step `number` (from 0) moves this group."""
        return number < self.config.num_steps

    def learning_rate(self, number: int) -> float:
        """At step `number` (from 0)."""
        return self.config.learning_rate * rate(number, self.config.num_steps, self.config.warmup_share)

    def step(self, number: int) -> None:
        """Takes step `number`, unless this group's steps are over, and forgets the gradients."""
        if self.takes_part(number):
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            for group in self._optimiser.param_groups:
                group["lr"] = self.learning_rate(number)
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return self._optimiser.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        moments = {
            index: {name: part_of(value, self.parameters[index]) for name, value in own.items()}
            for index, own in state["state"].items()
        }
        self._optimiser.load_state_dict({**state, "state": moments})


def rate(step: int, num_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step (from 0): a linear rise, then a linear fall to nearly zero."""
    warmup = math.ceil(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return (num_steps - step) / (num_steps - warmup)


@dataclass(slots=True)
class Curve:
    """Loss of each control at each of its steps; of uncontrolled examples where there are some."""

    losses: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        return max(map(len, self.losses.values()), default=0)

    def add(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {name!r} became {loss} at its step {len(self.losses.get(name, []))}; "
                f"lower the learning rate, or train in float32"
            )
        self.losses.setdefault(name, []).append(loss)


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What the loop itself must know. `uncontrolled_weight`: of their mean loss, where a control's has weight 1."""

    stage: str
    machine: Machine
    tokens_per_pass: int
    pad_id: int
    autocast: bool
    seed: int
    objective: Objective = field(default_factory=Objective)
    packed: bool = False
    loss_chunk: int = 256
    uncontrolled_weight: float = 1.0
    prompt_cache: PromptCache | None = None
    sharded: bool = False


def optimise(
    model: nn.Module,
    controls: ControlSet,
    schedule: Schedule,
    groups: list[ParameterGroup],
    config: LoopConfig,
    *,
    curve: Curve,
    start: int = 0,
    after_step: Callable[[int], None] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> None:
    """Runs steps `start` to the end of the schedule. Appends to `curve`; calls `after_step` with each step done."""
    clock = _Clock(config.stage, schedule, start)
    for number in range(start, schedule.num_steps):
        # Models with dropout draw the same numbers at a step whether or not the run was resumed before it.
        torch.manual_seed(config.seed * 1_000_003 + number)
        items = schedule.step(number)
        losses = backward(model, controls, items, config)
        taking_part = [group for group in groups if group.takes_part(number)]
        config.machine.add_gradients(parameter for group in taking_part for parameter in group.parameters)
        for group in groups:
            group.step(number)
        named = {loss_name(controls, control): loss for control, loss in losses.items()}
        for name, loss in named.items():
            curve.add(name, loss)
        if after_step:
            after_step(number + 1)
        if on_progress:
            rates = {group.config.name: group.learning_rate(number) for group in taking_part}
            on_progress(replace(clock.after(number, items, named), learning_rates=rates))


def loss_name(controls: ControlSet, control: int) -> str:
    """What a loss is called in curves."""
    return UNCONTROLLED_NAME if control == UNCONTROLLED else controls.names[control]


def backward(model: nn.Module, controls: ControlSet, items: list[Item], config: LoopConfig) -> dict[int, float]:
    """Adds to the gradients those of sum_k L_k, L_k being the mean loss of control k in this step, and returns every
    L_k. Rows of all controls go over the model together. Of several processes each adds its own share."""
    sizes = StepSizes.of(items, len(controls.names), config.machine.device)
    weights = torch.ones_like(sizes.num_tokens)
    weights[UNCONTROLLED] = config.uncontrolled_weight
    sums = torch.zeros_like(sizes.num_tokens)
    for group, counts in own_passes(model, controls, items, config):
        losses = _losses(model, controls, group, sizes, config, weights if counts else torch.zeros_like(weights))
        if counts:
            sums += losses.detach()
    config.machine.add(sums)
    return {control: float(sums[control]) for control in sorted({item.control for item in items})}


def own_passes(
    model: nn.Module, controls: ControlSet, items: list[Item], config: LoopConfig
) -> list[tuple[list[Item], bool]]:
    """This process's passes of a step, and whether each counts.

    Where the model is sharded every process must go over it equally often, with gradient or without: then whoever has
    fewer passes adds some that count for nothing.
    """
    cost = partial(tokens_on_the_way, packed=config.packed)
    groups = passes(items, config.tokens_per_pass, packed=config.packed)
    if not config.sharded:
        return [(group, True) for group in config.machine.share(groups, cost)]
    found = []
    for learns in (True, False):
        alike = [group for group in groups if _learns(group, model, controls) is learns]
        own = config.machine.share(alike, cost)
        num = max(map(len, shares(alike, config.machine.num_processes, cost)))
        found += [(group, True) for group in own]
        found += [(min(alike, key=cost), False) for _ in range(num - len(own))]
    return found


def _losses(
    model: nn.Module,
    controls: ControlSet,
    group: list[Item],
    sizes: StepSizes,
    config: LoopConfig,
    weights: Tensor,
) -> Tensor:
    """One pass: the losses of a group, (K + 1,), after their gradients were added."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(group, model, controls)):
        batch, given = _batch(model, controls, group, config)
        with controls.applied(batch.token_controls), _precision(config):
            nll = reply_nll(model, batch, chunk=config.loss_chunk, **given)
            losses = config.objective.losses(nll, batch, sizes)
            if losses.requires_grad:
                # Inside the block: under gradient checkpointing the forward pass runs again during this call.
                torch.autograd.backward((losses * weights).sum())
    return losses


def _learns(group: list[Item], model: nn.Module, controls: ControlSet) -> bool:
    """Whether anything gets a gradient from a group: uncontrolled examples move nothing but the model."""
    if any(item.control != UNCONTROLLED for item in group):
        return True
    own = {id(parameter) for k in range(len(controls.names)) for parameter in controls.parameters_of(k)}
    return any(parameter.requires_grad and id(parameter) not in own for parameter in model.parameters())


def _batch(
    model: nn.Module, controls: ControlSet, group: list[Item], config: LoopConfig
) -> tuple[Batch, dict[str, Any]]:
    """A group laid out, and the keys and values of its prompts where they are kept."""
    if config.prompt_cache is not None and all(item.control != UNCONTROLLED for item in group):
        return config.prompt_cache.lay_out(model, group, controls.virtual_ids, config.pad_id)
    batch = lay_out(group, controls.virtual_ids, config.pad_id, config.machine.device, packed=config.packed)
    return batch, {}


def _precision(config: LoopConfig) -> Any:
    return torch.autocast(config.machine.device.type, torch.bfloat16) if config.autocast else nullcontext()


@torch.no_grad()
def losses_again(model: nn.Module, controls: ControlSet, items: list[Item], config: LoopConfig) -> dict[str, float]:
    """The losses of a step's examples as the model and its controls are now."""
    losses = backward(model, controls, items, config)
    return {loss_name(controls, control): loss for control, loss in losses.items()}


class _Clock:
    """Speed and time left, by tokens: steps differ in length."""

    def __init__(self, stage: str, schedule: Schedule, start: int) -> None:
        self._stage = stage
        self._num_steps = schedule.num_steps
        done = sum(item.num_tokens for n in range(start) for item in schedule.step(n))
        self._left = schedule.num_tokens - done
        self._seen = 0
        self._since = time.monotonic()

    def after(self, number: int, items: list[Item], losses: dict[str, float]) -> TrainProgress:
        num = sum(item.num_tokens for item in items)
        self._seen += num
        self._left -= num
        speed = self._seen / max(1e-9, time.monotonic() - self._since)
        own = [loss for name, loss in losses.items() if name != UNCONTROLLED_NAME]
        return TrainProgress(
            self._stage, number + 1, self._num_steps, sum(own) / len(own), speed, self._left / speed, losses
        )
