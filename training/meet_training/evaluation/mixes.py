"""Do two controls of different axes hold at once when they are mixed? Pure: measured replies in, shares out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meet_training.evaluation.figures import Share, share_of


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two properties of a mix: the mix's values and those that it must be on the asked side of."""

    preference: str
    against: str
    values: Sequence[float]
    others: Sequence[float]
    higher: bool

    def held(self) -> list[bool]:
        """Prompt by prompt, is it on the asked side? Ties are not."""
        return [
            value > other if self.higher else value < other
            for value, other in zip(self.values, self.others, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Mixed:
    """How often a mix of two preferences has both properties, and each alone. `against` is in their order."""

    preferences: tuple[str, str]
    against: tuple[str, str]
    strength: float
    both: Share
    first: Share
    second: Share


def mixed(first: Side, second: Side, strength: float) -> Mixed:
    """The figures of one mix, each preference at `strength`. Raises ValueError where the prompts differ in number."""
    one, two = first.held(), second.held()
    both = sum(a and b for a, b in zip(one, two, strict=True))
    return Mixed(
        (first.preference, second.preference),
        (first.against, second.against),
        strength,
        share_of(both, len(one)),
        share_of(sum(one), len(one)),
        share_of(sum(two), len(two)),
    )
