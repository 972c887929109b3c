"""What a control, or stage 2, does to replies besides what was asked: broken replies, other meaning, worse language.

Pure, but for the similarity that is handed in. Knows nothing of who gave the replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meet_training.data.attributes import words_of
from meet_training.evaluation.bootstrap import Array, Estimate, bootstrap, mean_of
from meet_training.evaluation.figures import Share, same_share, share_of
from meet_training.evaluation.log_odds import Score
from meet_training.evaluation.replies import Reply
from meet_training.evaluation.similarity import Similarity

RUN = 4
"""Words of a run that is looked for again."""

REPEATS = 0.2
"""Share of runs that stood before from which a reply repeats itself."""


@dataclass(frozen=True, slots=True)
class SideEffects:
    """What one control does besides what was asked; `of` is its name, or `uncontrolled`."""

    of: str
    empty: Share
    repeats: Share
    truncated: Share
    similarity: Estimate | None


@dataclass(frozen=True, slots=True)
class Parity:
    """The MEET model without a control beside its base model, on the base model's replies to the same prompts.

    Perplexities are e to the mean loss a token over all replies. `ratio` is the MEET model's over the base's: 1.03
    is 3% worse. `same` is the share of prompts on which both give the same reply.
    """

    same: Share
    similarity: Estimate
    meet_perplexity: Estimate | None = None
    base_perplexity: Estimate | None = None
    ratio: Estimate | None = None


def repeated_share(text: str) -> float:
    """Share of the runs of four words that stood before in the reply, 0 to 1; case does not count."""
    words = [word.lower() for word in words_of(text)]
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def repeats(reply: Reply) -> bool:
    """Does the reply repeat itself?"""
    return repeated_share(reply.text) > REPEATS


def broken(reply: Reply) -> bool:
    """Does the reply say nothing, was it cut off, or does it repeat itself?"""
    return reply.empty or not reply.finished or repeats(reply)


def side_effects(
    of: str, replies: Sequence[Reply], uncontrolled: Sequence[Reply] | None, similarity: Similarity
) -> SideEffects:
    """The figures of one set of replies; beside the uncontrolled ones, where it is not they."""
    return SideEffects(
        of,
        share_of(sum(reply.empty for reply in replies), len(replies)),
        share_of(sum(map(repeats, replies)), len(replies)),
        share_of(sum(not reply.finished for reply in replies), len(replies)),
        None if uncontrolled is None else mean_of(similarity.of(_texts(replies), _texts(uncontrolled))),
    )


def parity(
    meet: Sequence[Reply],
    base: Sequence[Reply],
    similarity: Similarity,
    scores: tuple[Sequence[Score], Sequence[Score]] | None,
) -> Parity:
    """How far the MEET model without a control is from its base.

    `scores` are those of the base's replies under the MEET model and under the base, where they can be had.
    """
    same = same_share(_texts(meet), _texts(base))
    alike = mean_of(similarity.of(_texts(meet), _texts(base)))
    if scores is None:
        return Parity(same, alike)
    under_meet, under_base = scores
    rows = np.array(
        [
            (score.logprob, score.num_tokens, other.logprob, other.num_tokens)
            for score, other in zip(under_meet, under_base, strict=True)
        ],
        dtype=np.float64,
    )
    return Parity(
        same,
        alike,
        meet_perplexity=bootstrap(rows, lambda drawn: _perplexity(drawn[..., :2])),
        base_perplexity=bootstrap(rows, lambda drawn: _perplexity(drawn[..., 2:])),
        ratio=bootstrap(rows, lambda drawn: _perplexity(drawn[..., :2]) / _perplexity(drawn[..., 2:])),
    )


def _perplexity(rows: Array) -> Array:
    # (R, N, 2) of summed log-probabilities and numbers of tokens -> (R,)
    totals = rows.sum(axis=1)
    perplexities: Array = np.exp(-totals[:, 0] / totals[:, 1])
    return perplexities


def _texts(replies: Sequence[Reply]) -> list[str]:
    return [reply.text for reply in replies]
