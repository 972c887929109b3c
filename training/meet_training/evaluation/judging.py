"""Which of two replies is more of something, by a model that judges: each pair is shown twice, the order swapped.

A reply wins where it is chosen in both orders; a judge that chooses by position decides nothing. Pure, but for what it
leaves to whoever asks: questions out, answers in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from meet_training.errors import TrainingError
from meet_training.evaluation.asking import Endpoint
from meet_training.evaluation.evaluation_config import JudgeConfig, SamplingConfig
from meet_training.evaluation.figures import Share, share_of
from meet_training.evaluation.prompts import Message, Prompt
from meet_training.evaluation.replies import Question, Reply

# "A", "**B**", "(A)", "Reply B.", "The answer is A", "I'd say B": a letter at the end or before a mark, in few words.
# "A more formal reply is ..." begins with an article.
_LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:better\s+|best\s+)?(?:answer|reply|response|option)\W+(?:is\W+)?(?:reply\W+)?"
    r"|i(?:'d|\s+would)?\s+(?:say|choose|pick)\W+(?:reply\W+)?)?([AB])(?=\W*$|\W*\n|[.,:;)*\]])",
    re.IGNORECASE,
)
_TEMPLATE = """Two replies to the same message are shown below.

Message:
{prompt}

Reply A:
{first}

Reply B:
{second}

{question} Answer with one letter, A or B, and nothing else."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How often a judge prefers a preference's reply over its opposite's in both orders.

    `by_position`: it chose the same letter in both orders. `no_answer`: it gave no letter in one of them.
    """

    preference: str
    opposite: str
    judge: str
    prefers_own: Share
    by_position: Share
    no_answer: Share


def judge_endpoint(judge: JudgeConfig) -> Endpoint:
    """Who is asked. Raises TrainingError where its key is not in the environment."""
    url = judge.url.rstrip("/").removesuffix("/v1")
    key = "none"
    if judge.api_key_env is not None and not (key := os.environ.get(judge.api_key_env, "")):
        raise TrainingError(f"judge.api_key_env: {judge.api_key_env} is not set")
    return Endpoint(url, judge.model, f"judge {url} {judge.model}", key)


def judge_sampling(judge: JudgeConfig) -> SamplingConfig:
    """Greedy, and as short as an answer is."""
    return SamplingConfig(temperature=0, repetition_penalty=1, max_tokens=judge.max_tokens)


def judge_questions(prompt: Prompt, own: str, other: str, question: str) -> tuple[Question, Question]:
    """One pair in both orders: the own reply is A in the first, B in the second."""
    asked = prompt[-1].content
    return (
        Question((Message("user", _TEMPLATE.format(prompt=asked, first=own, second=other, question=question)),), {}),
        Question((Message("user", _TEMPLATE.format(prompt=asked, first=other, second=own, question=question)),), {}),
    )


def judged(preference: str, opposite: str, judge: str, answers: Sequence[tuple[Reply, Reply]], *, more: bool) -> Judged:
    """The figures of one preference from the answers to both orders of each pair.

    `more` is False where the preference is the one that should lose. Raises ValueError where there are none.
    """
    letters = [(_letter(first), _letter(second)) for first, second in answers]
    wanted = ("A", "B") if more else ("B", "A")
    num = len(letters)
    return Judged(
        preference,
        opposite,
        judge,
        prefers_own=share_of(letters.count(wanted), num),
        by_position=share_of(letters.count(("A", "A")) + letters.count(("B", "B")), num),
        no_answer=share_of(sum(None in pair for pair in letters), num),
    )


def _letter(answer: Reply) -> str | None:
    found = _LETTER.match(answer.text)
    return found[1].upper() if found else None
