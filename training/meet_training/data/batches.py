"""Which examples each step sees, and in which passes they go over the model. Pure; knows no model.

A step takes `batch_size` examples of every control that still has some. A control's order depends on the
seed and its own name alone, so training it beside others or by itself shows it the same examples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meet_training.data.render import Rendered


@dataclass(frozen=True, slots=True)
class Item:
    """One example of a step and the index of its control."""

    control: int
    rendered: Rendered


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a stage: for each control, the batches of its examples."""

    batches: tuple[tuple[tuple[Rendered, ...], ...], ...]

    @property
    def num_steps(self) -> int:
        return max((len(batches) for batches in self.batches), default=0)

    def num_steps_of(self, control: int) -> int:
        return len(self.batches[control])

    @property
    def num_tokens(self) -> int:
        """Prompt and reply tokens of the whole stage."""
        return sum(len(r) for batches in self.batches for batch in batches for r in batch)

    def step(self, number: int) -> list[Item]:
        """What step `number` (from 0) sees, controls in order."""
        return [
            Item(control, rendered)
            for control, batches in enumerate(self.batches)
            if number < len(batches)
            for rendered in batches[number]
        ]


def make_schedule(examples: dict[str, list[Rendered]], *, epochs: float, batch_size: int, seed: str) -> Schedule:
    """Shuffles each control's examples anew each epoch; a part of an epoch takes that share of its steps."""
    batches = []
    for label, group in examples.items():
        total = math.ceil(epochs * math.ceil(len(group) / batch_size))
        stream = _epochs(group, batch_size, f"{seed}/{label}")
        batches.append(tuple(next(stream) for _ in range(total)))
    return Schedule(tuple(batches))


def _epochs(group: Sequence[Rendered], batch_size: int, seed: str) -> Iterator[tuple[Rendered, ...]]:
    epoch = 0
    while True:
        order = list(group)
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, no secret
        for start in range(0, len(order), batch_size):
            yield tuple(order[start : start + batch_size])
        epoch += 1


def passes(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """Groups a step's examples by length, so that little is padding, each group at most `max_tokens` once padded.

    Controls are mixed freely: a group goes over the model once, whatever controls are in it. Inside a group
    rows are sorted by control. An example longer than `max_tokens` makes a group of its own.
    """
    groups: list[list[Item]] = []
    for item in sorted(items, key=lambda item: (-len(item.rendered), item.control)):
        longest = len(groups[-1][0].rendered) if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest > max_tokens:
            groups.append([])
        groups[-1].append(item)
    return [sorted(group, key=lambda item: item.control) for group in groups]
