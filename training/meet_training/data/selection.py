"""Which sampled replies are fit to learn from, and which of those a preference keeps: no files, no HTTP."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from meet_training.data.attributes import ATTRIBUTES, is_list_item, lines_of, words_of
from meet_training.data.generate_config import PreferenceRecipe

MAX_REPEATED_NGRAMS = 0.12
"""Share of a reply's runs of three words that may have stood in it before."""
MAX_FOREIGN_LETTERS = 0.05
"""Share of letters outside ASCII that a reply to a prompt in ASCII may have."""
MAX_CAPITALS = 0.5
"""Share of letters that may be capitals where the prompt is not in capitals itself."""
MAX_WORD_LENGTH = 40
"""Characters of the longest word that is still taken for a word."""
ECHOED_WORDS = 4
"""So many words in a row that stand in the instruction and not in the prompt give the instruction away."""

_TEMPLATE_TOKEN = re.compile(r"<\|[^|>\s]{1,40}\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>")
_ABOUT_THE_FORM = re.compile(
    r"\b(?:in (?:one|a|two|a few|\d) (?:single |short |brief |concise |plain )*(?:sentence|paragraph|line)s?"
    r"|bullet(?:ed)?[- ]?(?:point|list)s?"
    r"|(?:first|second|third|fourth|fifth|last|main) (?:sentence|paragraph|bullet)"
    r"|(?:short|brief|one-sentence|two-paragraph) (?:answer|response|summary)"
    r"|(?:this|the|these|following) (?:short )?(?:sentence|paragraph|list)s?|as (?:requested|instructed)"
    r"|more concise|(?:answer|response|reply) to (?:this|the|your) question)\b",
    re.IGNORECASE,
)
_ABOUT_ITSELF = re.compile(
    r"\b(?:as an? (?:AI|digital|language|virtual|chat)\b|AI (?:assistant|language model)|I'?m an? AI\b"
    r"|I(?: am|'m) (?:sorry|(?:happy|glad|here) to)|I can(?:not|'t) (?:help|assist))",
    re.IGNORECASE,
)
_NOT_FOR_READERS = re.compile(
    r"https?://|www\.|(?:^|\s)#[a-z]|(?-i:\[[A-Z][A-Za-z'’ ]{2,40}\](?!\())"
    r"|^\s*[-*•]\s+\(?\d+[.)]\s|^\s*(?:users?|assistant|human|system)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
"""Made-up web addresses, hashtags, blanks such as `[Your Name]`, items marked twice (`- 1. `), turns of a chat."""
_CLOSED = re.compile(r"[.!?…][\"'”’)*_]*$")


_TOPIC_WORD_LENGTH = 4
_TOPIC_STEM_LENGTH = 4
_NO_TOPIC = frozenset(
    re.findall(
        r"\w+",
        "about advice after before best between describe difference does explain from give good have know make "
        "makes many more most much need other people person some someone start tell than that their them they "
        "thing things this very want were what when where which while will with without would your",
    )
)
"""Common words of questions, which name no topic."""


class Reason(StrEnum):
    """Why a sampled reply was thrown out."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    UNFINISHED = "unfinished"
    BROKEN = "broken"
    REPETITIVE = "repetitive"
    ECHOES_INSTRUCTION = "echoes_instruction"
    ABOUT_ITSELF = "about_itself"
    OFF_TOPIC = "off_topic"
    OUT_OF_BOUNDS = "out_of_bounds"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply as the endpoint gave it."""

    reply: str
    finish_reason: str


@dataclass(slots=True)
class Choice:
    """What became of one preference's samples for one prompt."""

    kept: list[str] = field(default_factory=list)
    thrown_out: Counter[Reason] = field(default_factory=Counter)
    num_not_chosen: int = 0


def normalised(text: str) -> str:
    """Lower case, words only, single spaces: two replies that differ in nothing else are the same."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def repeated_ngrams(text: str, n: int = 3) -> float:
    """Share of the runs of `n` words that stood in the text before, 0 to 1."""
    words = normalised(text).split()
    runs = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def repeats_a_line(text: str) -> bool:
    """Do two lines with at least three words say the same?"""
    lines = [normalised(line) for line in lines_of(text)]
    long_lines = [line for line in lines if line.count(" ") >= 2]
    return len(set(long_lines)) < len(long_lines)


def is_broken(reply: str, prompt: str) -> bool:
    """Is it no text for a reader: template tokens, control characters, blanks, endless words, shouting?

    Letters of another script, and emoji, count as broken only where the prompt is in ASCII.
    """
    if _TEMPLATE_TOKEN.search(reply) or _NOT_FOR_READERS.search(reply) or "\ufffd" in reply:
        return True
    if any(not (character.isprintable() or character in "\n\t") for character in reply):
        return True
    if max(map(len, reply.split()), default=0) > MAX_WORD_LENGTH:
        return True
    letters = [character for character in reply if character.isalpha()]
    if not prompt.isupper() and sum(map(str.isupper, letters)) > MAX_CAPITALS * len(letters):
        return True
    foreign = sum(not letter.isascii() for letter in letters)
    return prompt.isascii() and (foreign > MAX_FOREIGN_LETTERS * len(letters) or any(map(is_emoji, reply)))


def is_emoji(character: str) -> bool:
    """Is it a pictograph? Signs such as `°` and `™` are none."""
    return unicodedata.category(character) == "So" and ord(character) >= 0x2190


def echoes(reply: str, prompt: str, instruction: str) -> bool:
    """Does the reply speak of the form that it was told to have, or repeat words of the instruction?"""
    if _ABOUT_THE_FORM.search(reply) and not _ABOUT_THE_FORM.search(prompt):
        return True
    words = normalised(instruction).split()
    padded_reply, padded_prompt = f" {normalised(reply)} ", f" {normalised(prompt)} "
    for start in range(len(words) - ECHOED_WORDS + 1):
        run = f" {' '.join(words[start : start + ECHOED_WORDS])} "
        if run in padded_reply and run not in padded_prompt:
            return True
    return False


def shares_no_topic(reply: str, prompt: str) -> bool:
    """Does no word of the prompt that could name its topic occur in the reply, by its first four letters?

    A coarse measure, for subjects in English; False where the prompt has no such word.
    """
    topic = topic_stems(prompt)
    return bool(topic) and topic.isdisjoint(topic_stems(reply))


def topic_stems(text: str) -> frozenset[str]:
    """The first four letters of each word with at least four that is no common word of questions."""
    words = normalised(text).split()
    return frozenset(
        word[:_TOPIC_STEM_LENGTH] for word in words if len(word) >= _TOPIC_WORD_LENGTH and word not in _NO_TOPIC
    )


def is_finished(reply: str) -> bool:
    """Does the last line end a sentence, or is it a list item, which need not?"""
    last = lines_of(reply)[-1]
    return is_list_item(last) or _CLOSED.search(last) is not None


def reason_against(sample: Sample, prompt: str, recipe: PreferenceRecipe, *, on_topic: bool = False) -> Reason | None:
    """The first reason to throw a reply out, judged on its own; none where it is fit to keep.

    With `on_topic` a reply must also share a word with its prompt.
    """
    reply = sample.reply.strip()
    checks: tuple[tuple[Reason, Callable[[], bool]], ...] = (
        (Reason.EMPTY, lambda: not words_of(reply)),
        (Reason.TRUNCATED, lambda: sample.finish_reason != "stop"),
        (Reason.BROKEN, lambda: is_broken(reply, prompt)),
        (Reason.UNFINISHED, lambda: not is_finished(reply)),
        (Reason.REPETITIVE, lambda: repeats_a_line(reply) or repeated_ngrams(reply) > MAX_REPEATED_NGRAMS),
        (Reason.ECHOES_INSTRUCTION, lambda: echoes(reply, prompt, recipe.instruction)),
        (Reason.ABOUT_ITSELF, lambda: _ABOUT_ITSELF.search(reply) is not None),
        (Reason.OFF_TOPIC, lambda: on_topic and shares_no_topic(reply, prompt)),
        (Reason.OUT_OF_BOUNDS, lambda: not within_bounds(reply, recipe)),
    )
    return next((reason for reason, applies in checks if applies()), None)


def within_bounds(reply: str, recipe: PreferenceRecipe) -> bool:
    """Does the reply meet every bound of the recipe?"""
    return all(bounds.hold(ATTRIBUTES[name].measure(reply)) for name, bounds in recipe.accept.items())


def choose(
    samples: Sequence[Sample],
    prompt: str,
    recipe: PreferenceRecipe,
    taken: set[str],
    *,
    on_topic: bool = False,
) -> Choice:
    """Keep the best `recipe.keep` of one prompt's samples; what is kept is added to `taken`, normalised.

    Best is the lowest or highest attribute; of equals, the one sampled first.
    """
    choice = Choice()
    fit: list[str] = []
    for sample in samples:
        reason = reason_against(sample, prompt, recipe, on_topic=on_topic)
        if reason is None:
            fit.append(sample.reply.strip())
        else:
            choice.thrown_out[reason] += 1
    sign = 1 if recipe.select == "lowest" else -1
    for reply in sorted(fit, key=lambda reply: sign * ATTRIBUTES[recipe.attribute].measure(reply)):
        if len(choice.kept) == recipe.keep:
            choice.num_not_chosen += 1
        elif normalised(reply) in taken:
            choice.thrown_out[Reason.DUPLICATE] += 1
        else:
            taken.add(normalised(reply))
            choice.kept.append(reply)
    return choice


def quantiles(values: Iterable[float]) -> Mapping[str, float]:
    """Lowest, 10%, 25%, median, 75%, 90% and highest value, each one that occurs; empty for no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    points = {"min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
    return {name: round(ordered[round(share * (len(ordered) - 1))], 4) for name, share in points.items()}
