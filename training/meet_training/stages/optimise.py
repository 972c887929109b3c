"""The one training loop, shared by both stages. Knows no preference by name and writes no file.

Every group of parameters (a control, the language model) has its own optimiser, schedule and clipping, so that
none touches another's parameters or statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from meet_training.controls.control import ControlSet
from meet_training.data.batches import Item, Schedule, passes
from meet_training.errors import TrainingError
from meet_training.stages.objective import collate, reply_nll


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a run is. `loss` is the mean over controls, nats per reply token, of the last step."""

    stage: str
    step: int
    num_steps: int
    loss: float
    tokens_per_s: float
    seconds_left: float


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

    def step(self, number: int) -> None:
        """Takes step `number` (from 0), unless this group's steps are over, and forgets the gradients."""
        if number < self.config.num_steps:
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            for group in self._optimiser.param_groups:
                group["lr"] = self.config.learning_rate * rate(number, self.config.num_steps, self.config.warmup_share)
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return self._optimiser.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self._optimiser.load_state_dict(state)


def rate(step: int, num_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step (from 0): a linear rise, then a linear fall to nearly zero."""
    warmup = math.ceil(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return (num_steps - step) / max(1, num_steps - warmup)


@dataclass(slots=True)
class Curve:
    """Loss of each control at each of its steps, nats per reply token."""

    losses: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {name!r} became {loss} at its step {len(self.losses.get(name, []))}; "
                f"lower the learning rate, or train in float32"
            )
        self.losses.setdefault(name, []).append(loss)


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What the loop itself must know."""

    stage: str
    tokens_per_pass: int
    pad_id: int
    device: torch.device
    autocast: bool
    seed: int


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
        for group in groups:
            group.step(number)
        for control, loss in losses.items():
            curve.add(controls.names[control], loss)
        if after_step:
            after_step(number + 1)
        if on_progress:
            on_progress(clock.after(number, items, sum(losses.values()) / len(losses)))


def backward(model: nn.Module, controls: ControlSet, items: list[Item], config: LoopConfig) -> dict[int, float]:
    """Adds to the gradients those of sum_k L_k, L_k being the mean over the reply tokens of control k in this
    step, and returns every L_k. Rows of all controls go over the model together."""
    num_tokens: dict[int, int] = {}
    for item in items:
        num_tokens[item.control] = num_tokens.get(item.control, 0) + len(item.rendered.reply_ids)
    share = torch.zeros(len(controls.names), device=config.device)
    for control, num in num_tokens.items():
        share[control] = 1.0 / num
    sums = torch.zeros(len(controls.names), device=config.device)
    for group in passes(items, config.tokens_per_pass):
        batch = collate(group, config.pad_id, config.device)
        with controls.applied(batch.rows), _precision(config):
            nll: Tensor = reply_nll(model, batch)
            weighted = nll * share[batch.controls]
            # Inside the block: under gradient checkpointing the forward pass runs again during this call.
            torch.autograd.backward(weighted.sum())
        sums.index_add_(0, batch.controls, weighted.detach())
    return {control: float(sums[control]) for control in sorted(num_tokens)}


def _precision(config: LoopConfig) -> Any:
    return torch.autocast(config.device.type, torch.bfloat16) if config.autocast else nullcontext()


class _Clock:
    """Speed and time left, by tokens: steps differ in length."""

    def __init__(self, stage: str, schedule: Schedule, start: int) -> None:
        self._stage = stage
        self._num_steps = schedule.num_steps
        done = sum(len(item.rendered) for n in range(start) for item in schedule.step(n))
        self._left = schedule.num_tokens - done
        self._seen = 0
        self._since = time.monotonic()

    def after(self, number: int, items: list[Item], loss: float) -> TrainProgress:
        num = sum(len(item.rendered) for item in items)
        self._seen += num
        self._left -= num
        speed = self._seen / max(1e-9, time.monotonic() - self._since)
        return TrainProgress(self._stage, number + 1, self._num_steps, loss, speed, self._left / speed)
