"""One sentence a preference that a sceptic may quote: whether it holds, and what speaks against it. Pure.

Knows figures alone, not where they come from. The first that is true decides:

- *does nothing*: the controlled reply is the uncontrolled one, word for word, on nearly every prompt, or on most while
  the attribute of the others is on either side, and as by chance;
- *not distinguishable*: the prompts that are no ties with its opposite (with no control, where it has none) are on
  either side as by chance, or there are none;
- *reversed*: fewer than half are;
- *too seldom*: more than half are, but it holds on fewer prompts than its bound, or than `MOST` where there is none;
- *holds*: neither. Where it is told from its opposite but not from no control, the sentence says so.
"""

from __future__ import annotations

from enum import StrEnum

from meet_training.evaluation.figures import Holds, Share

SAME_TEXT = 0.9
"""Share of replies that are the uncontrolled ones from which a control does nothing. Not 1: in bfloat16 a near tie
can fall either way from one batch to the next."""

MOSTLY_SAME = 0.5
"""The same where the replies that differ do so by chance: long replies meet more near ties."""

MOST = 0.5
"""The bound of a preference for which the configuration names none."""


class Verdict(StrEnum):
    """What the figures say of a preference."""

    HOLDS = "holds"
    TOO_SELDOM = "too seldom"
    NOT_DISTINGUISHABLE = "not distinguishable"
    REVERSED = "reversed"
    DOES_NOTHING = "does nothing"


def judge(holds: Holds, beside_none: Holds, same_as_uncontrolled: Share, bound: float | None) -> Verdict:
    """The verdict; `holds` is against the opposite, or against no control where there is none, as `beside_none` is."""
    decided = beside_none.decided
    on_both_sides = decided is not None and 0 < decided.share < 1 and not (beside_none.better or beside_none.worse)
    if same_as_uncontrolled.share >= (MOSTLY_SAME if on_both_sides else SAME_TEXT):
        return Verdict.DOES_NOTHING
    if holds.worse:
        return Verdict.REVERSED
    if not holds.better:
        return Verdict.NOT_DISTINGUISHABLE
    return Verdict.TOO_SELDOM if holds.share < (MOST if bound is None else bound) else Verdict.HOLDS


def sentence(
    preference: str,
    attribute: str,
    against: str,
    holds: Holds,
    beside_none: Holds,
    same_as_uncontrolled: Share,
    verdict: Verdict,
    bound: float | None,
) -> str:
    """The verdict in words; `against` is the opposite's name, or `no control`."""
    sides = f"measured by {attribute} it is on the asked side of {against} on {counted(holds)}"
    ties = f", on neither side on {holds.num_ties}" if holds.num_ties else ""
    match verdict:
        case Verdict.DOES_NOTHING:
            same = counted(same_as_uncontrolled)
            return f"{preference} does nothing: its replies are those without a control, word for word, on {same}."
        case Verdict.NOT_DISTINGUISHABLE:
            return f"{preference} is not distinguishable from {against}: {sides}{ties}."
        case Verdict.REVERSED:
            return f"{preference} does not hold, it does the reverse: {sides}{ties}."
        case Verdict.TOO_SELDOM:
            least = MOST if bound is None else bound
            return f"{preference} holds too seldom: {sides}{ties}, below the bound of {100 * least:.0f}%."
        case Verdict.HOLDS:
            return f"{preference} holds: {sides}.{_caveat(beside_none)}"


def _caveat(beside_none: Holds) -> str:
    if beside_none.better:
        return ""
    what = "it moves the other way" if beside_none.worse else "it is not distinguishable"
    return f" Beside no control {what}: {counted(beside_none)}."


def counted(share: Share) -> str:
    """`98% of 60 prompts [91%, 100%]`."""
    percent, low, high = (f"{100 * value:.0f}%" for value in (share.share, share.low, share.high))
    return f"{percent} of {share.num_prompts} prompts [{low}, {high}]"
