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
    """How often a mix of two preferences has both properties, and each alone. Pairs are in the preferences' order.

    `prompted_both` is the same of the model that is prompted with both instructions, beside its own replies to those of
    the opposites; None where it was not asked.
    """

    preferences: tuple[str, str]
    against: tuple[str, str]
    strengths: tuple[float, float]
    both: Share
    first: Share
    second: Share
    prompted_both: Share | None = None


def mix_name(preferences: Sequence[str], strengths: Sequence[float]) -> str:
    """A mix as reports name it: `concise=1 + bulleted=1.5`."""
    return " + ".join(f"{each}={strength:g}" for each, strength in zip(preferences, strengths, strict=True))


def mixed(
    first: Side, second: Side, strengths: tuple[float, float], prompted: tuple[Side, Side] | None = None
) -> Mixed:
    """The figures of one mix, each preference at its strength; `prompted` are the same sides of the prompted model.

    Raises ValueError where the prompts differ in number.
    """
    one, two = first.held(), second.held()
    return Mixed(
        (first.preference, second.preference),
        (first.against, second.against),
        strengths,
        _both(one, two),
        share_of(sum(one), len(one)),
        share_of(sum(two), len(two)),
        None if prompted is None else _both(prompted[0].held(), prompted[1].held()),
    )


def _both(one: Sequence[bool], two: Sequence[bool]) -> Share:
    return share_of(sum(a and b for a, b in zip(one, two, strict=True)), len(one))
