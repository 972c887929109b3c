"""Are asked-for lengths kept? The violation rate of LIFT (Yuan et al. 2024, arXiv 2406.17744). Pure.

A prompt asks for at most so many words; a reply that has more violates it. Each control of a length axis is asked
with the same limits as the model without a control and the plain base model, so that a table shows whether a control
helps to keep them. Unlike the paper, which takes each prompt's limit from the replies of three models, limits are the
configuration's, and the sentence that asks is our own, at the end of the prompt as every instruction here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meet_training.data.attributes import num_words
from meet_training.evaluation.bootstrap import Estimate, median_of
from meet_training.evaluation.figures import Share, share_of

TEMPLATE = "Answer in {max_words} words or less."


@dataclass(frozen=True, slots=True)
class LengthViolations:
    """How often replies of one kind have more words than were asked for, and their median number of words."""

    of: str
    max_words: int
    violated: Share
    words: Estimate


def length_violations(of: str, max_words: int, texts: Sequence[str]) -> LengthViolations:
    """The figures of replies to prompts that asked for at most `max_words`. Raises ValueError where there are none."""
    words = [num_words(text) for text in texts]
    return LengthViolations(
        of, max_words, share_of(sum(num > max_words for num in words), len(words)), median_of(words)
    )
