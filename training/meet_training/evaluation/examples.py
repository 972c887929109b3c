"""Which replies a person should read side by side: the worst of each preference, and the one in the middle. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from meet_training.evaluation.evaluate import measured
from meet_training.evaluation.plan import NO_CONTROL, PROMPTED, Plan
from meet_training.evaluation.results import Results
from meet_training.evaluation.subject import Tested

NUM_WORST = 3


@dataclass(frozen=True, slots=True)
class ShownReply:
    """One reply of an example: whose it is, its attribute, whether it was cut off."""

    of: str
    text: str
    value: float
    finished: bool


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Replies to one prompt. `margin` is by how much the attribute is on the asked side, below 0 on the other."""

    preference: str
    kind: str
    attribute: str
    prompt: str
    margin: float
    replies: tuple[ShownReply, ...]


def examples(plan: Plan, results: Results) -> list[SideBySide]:
    """For each preference its `NUM_WORST` prompts of least margin, and the prompt of median margin."""
    return [example for tested in plan.subject.preferences for example in _of(plan, results, tested)]


def _of(plan: Plan, results: Results, tested: Tested) -> list[SideBySide]:
    axis = plan.config.axes[tested.axis]
    shown = {tested.name: results.replies.controlled[tested.name]}
    if tested.opposite is not None:
        shown[tested.opposite] = results.replies.controlled[tested.opposite]
    shown[NO_CONTROL] = results.replies.uncontrolled
    if prompted := results.replies.prompted.get(tested.name):
        shown[f"{PROMPTED}: {tested.name}"] = prompted
    values = {of: measured(axis.attribute, replies) for of, replies in shown.items()}
    against = values[tested.opposite or NO_CONTROL]
    sign = 1 if axis.asks_more(tested.name) else -1
    margins = [sign * (own - other) for own, other in zip(values[tested.name], against, strict=True)]
    order = sorted(range(len(margins)), key=lambda index: (margins[index], index))
    chosen = {"median": [order[(len(order) - 1) // 2]], "worst": order[:NUM_WORST]}
    return [
        SideBySide(
            tested.name,
            kind,
            axis.attribute,
            plan.prompts[index][-1].content,
            margins[index],
            tuple(
                ShownReply(of, replies[index].text, values[of][index], replies[index].finished)
                for of, replies in shown.items()
            ),
        )
        for kind, indices in chosen.items()
        for index in indices
    ]
