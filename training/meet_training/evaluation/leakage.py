"""What a control moves that it was not asked to: a matrix of controls and attributes. Pure.

A cell compares the controlled reply with the uncontrolled one to the same prompt. Its shift is free of units, so that
the columns can be compared; `difference` is in the attribute's own unit. Attributes are no more independent than words
are: a longer reply has more sentences, and the matrix shows that too. With many cells, about one in twenty that
is truly 0 has an interval that leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meet_training.evaluation.bootstrap import Estimate
from meet_training.evaluation.figures import Holds, holds, mean_difference


@dataclass(frozen=True, slots=True)
class Cell:
    """How one control moves one attribute.

    `more` is how often it has more of it than without a control; its `advantage`, the share of prompts with more less
    the share with less, -1 to 1, is the shift. `asked` is True where it is what the control is measured by.
    """

    preference: str
    attribute: str
    asked: bool
    more: Holds
    difference: Estimate

    @property
    def leaks(self) -> bool:
        """Does it move what it was not asked to, beyond its interval?"""
        return not self.asked and (self.more.better or self.more.worse)


def leakage(
    controlled: Mapping[str, Mapping[str, Sequence[float]]],
    uncontrolled: Mapping[str, Sequence[float]],
    asked: Mapping[str, str],
) -> list[Cell]:
    """The matrix, row by row.

    `controlled` has for each preference, `uncontrolled` for none, the values of each attribute, one a prompt;
    `asked` says which attribute a preference is measured by. Raises KeyError and ValueError where they do not fit.
    """
    return [
        Cell(
            preference,
            attribute,
            asked[preference] == attribute,
            holds(values, uncontrolled[attribute], higher=True),
            mean_difference(values, uncontrolled[attribute]),
        )
        for preference, attributes in controlled.items()
        for attribute, values in attributes.items()
    ]
