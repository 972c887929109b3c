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

UNCONTROLLED = -1
"""Index of "no control" where others are 0 to K - 1."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example of a step and the index of its control."""

    control: int
    rendered: Rendered

    @property
    def num_rows(self) -> int:
        """Rows that it takes in a batch: two where the other reply of a pair goes along."""
        return 1 if self.rendered.rejected_ids is None else 2

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        rejected = self.rendered.rejected_ids or ()
        return len(self.rendered.prompt_ids) + max(len(self.rendered.reply_ids), len(rejected))

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""
        return self.num_rows * len(self.rendered.prompt_ids) + (
            len(self.rendered.reply_ids) + len(self.rendered.rejected_ids or ())
        )


Batches = tuple[tuple[Rendered, ...], ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a stage: for each control, the batches of its examples; `uncontrolled` beside them."""

    batches: tuple[Batches, ...]
    uncontrolled: Batches = ()

    @property
    def num_steps(self) -> int:
        return max((len(batches) for batches in self.batches), default=0)

    def num_steps_of(self, control: int) -> int:
        return len(self.batches[control])

    @property
    def num_tokens(self) -> int:
        """Prompt and reply tokens of the whole stage."""
        return sum(item.num_tokens for number in range(self.num_steps) for item in self.step(number))

    def step(self, number: int) -> list[Item]:
        """What step `number` (from 0) sees: uncontrolled examples, then those of the controls in order."""
        own = self.uncontrolled[number] if number < len(self.uncontrolled) else ()
        return [Item(UNCONTROLLED, rendered) for rendered in own] + [
            Item(control, rendered)
            for control, batches in enumerate(self.batches)
            if number < len(batches)
            for rendered in batches[number]
        ]


def make_schedule(
    examples: dict[str, list[Rendered]],
    *,
    epochs: float,
    batch_size: int,
    seed: str,
    uncontrolled: Sequence[Rendered] = (),
    uncontrolled_share: float = 0.0,
) -> Schedule:
    """Shuffles each control's examples anew each epoch; a part of an epoch takes that share of its steps.

    Every step also has as many of `uncontrolled` as make up that share of it, at least one where the share is not 0.
    """
    batches = []
    for label, group in examples.items():
        total = math.ceil(epochs * math.ceil(len(group) / batch_size))
        stream = _epochs(group, batch_size, f"{seed}/{label}")
        batches.append(tuple(next(stream) for _ in range(total)))
    schedule = Schedule(tuple(batches))
    num = num_uncontrolled(len(examples) * batch_size, uncontrolled_share)
    if not num:
        return schedule
    own = _epochs(uncontrolled, num, f"{seed}/uncontrolled")
    return Schedule(schedule.batches, tuple(next(own) for _ in range(schedule.num_steps)))


def num_uncontrolled(num_controlled: int, share: float) -> int:
    """How many uncontrolled examples beside `num_controlled` make up a share of all."""
    return max(1, round(num_controlled * share / (1 - share))) if share else 0


def _epochs(group: Sequence[Rendered], batch_size: int, seed: str) -> Iterator[tuple[Rendered, ...]]:
    epoch = 0
    while True:
        order = list(group)
        random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311 - an order, no secret
        for start in range(0, len(order), batch_size):
            yield tuple(order[start : start + batch_size])
        epoch += 1


def passes(items: Sequence[Item], max_tokens: int, *, packed: bool = False) -> list[list[Item]]:
    """Groups a step's examples by length, so that little is padding, each group at most `max_tokens` once padded.

    Controls are mixed freely: a group goes over the model once, whatever controls are in it. Inside a group
    rows are sorted by control. An example longer than `max_tokens` makes a group of its own. Where rows are
    `packed` nothing is padding: there are as few groups as can be, of nearly equal sums of lengths.
    """
    if packed:
        return [sorted(group, key=lambda item: item.control) for group in _equal_groups(items, max_tokens)]
    groups: list[list[Item]] = []
    for item in sorted(items, key=lambda item: (-item.length, item.control)):
        if not groups or tokens_on_the_way([*groups[-1], item], packed=False) > max_tokens:
            groups.append([])
        groups[-1].append(item)
    return [sorted(group, key=lambda item: item.control) for group in groups]


def tokens_on_the_way(group: Sequence[Item], *, packed: bool) -> int:
    """What goes over the model with a group, padding included: its cost."""
    if packed:
        return sum(item.num_tokens for item in group)
    return max(item.length for item in group) * sum(item.num_rows for item in group)


def _equal_groups(items: Sequence[Item], max_tokens: int) -> list[list[Item]]:
    """The longest example first, each into what is then the smallest group; the largest group comes first."""
    if not items:
        return []
    in_order = sorted(items, key=lambda item: (-item.num_tokens, item.control))
    # A pair may have more tokens than a pass, so that there are fewer examples than passes' worth of tokens.
    fewest = min(math.ceil(sum(item.num_tokens for item in items) / max_tokens), len(items))
    for num in range(fewest, len(items) + 1):
        groups: list[list[Item]] = [[] for _ in range(num)]
        sizes = [0] * num
        for item in in_order:
            smallest = sizes.index(min(sizes))
            groups[smallest].append(item)
            sizes[smallest] += item.num_tokens
        if all(size <= max_tokens or len(group) == 1 for size, group in zip(sizes, groups, strict=True)):
            break
    return [groups[i] for i in sorted(range(num), key=lambda i: -sizes[i])]
