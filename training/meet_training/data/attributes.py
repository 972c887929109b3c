"""What can be measured on one reply: its length, its form, its words, its ease and mood. Pure functions of the text.

Knows nothing of preferences, prompts or models: a configuration says which attribute a preference moves.
`meet_training.evaluation.attributes` is the same registry by the name that evaluation uses. What takes a dictionary is
measured by a library that brings it along, offline: Pyphen's hyphenation, VADER's lexicon. Both are for English.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

_LIST_ITEM = re.compile(r"\s*(?:[-*+•–‣◦]|\(?\d{1,3}[.)]|[A-Za-z][.)])\s+\S")
_CONTRACTION = re.compile(r"[A-Za-z]['’](?:t|s|re|ve|ll|d|m)\b")

Summary = Literal["median", "mean"]
"""What stands for the values of many replies: the median, or the mean where most replies have one of two values, of
which a median would only say which is more frequent."""


class Attribute(Protocol):
    """A named measure of one reply."""

    @property
    def name(self) -> str:
        """The word that configurations use for it."""

    @property
    def unit(self) -> str:
        """The unit of what `measure` returns."""

    @property
    def summary(self) -> Summary:
        """What stands for the values of many replies."""

    def measure(self, text: str) -> float:
        """The attribute of one reply; 0 for an empty one."""


@dataclass(frozen=True, slots=True)
class MeasuredBy:
    """An attribute that a plain function measures."""

    name: str
    unit: str
    function: Callable[[str], float]
    summary: Summary = "median"

    def measure(self, text: str) -> float:
        """The attribute of one reply, in `unit`; 0 for an empty one."""
        return self.function(text)


def lines_of(text: str) -> list[str]:
    """The lines of a reply that hold more than white space, without what surrounds them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def words_of(text: str) -> list[str]:
    """The words of a reply: what stands between white space and holds a letter or a digit."""
    return [word for word in text.split() if any(map(str.isalnum, word))]


def is_list_item(line: str) -> bool:
    """Does the line start with a bullet (`-`, `*`, `•`) or a number or letter marker (`1.`, `2)`, `a.`)?"""
    return _LIST_ITEM.match(line) is not None


def num_words(text: str) -> float:
    """How many words the reply has; a bare bullet or dash is none."""
    return float(len(words_of(text)))


def num_characters(text: str) -> float:
    """How many characters the reply has, without white space around it."""
    return float(len(text.strip()))


def num_sentences(text: str) -> float:
    """How many runs of `.`, `!` or `?` close a word: an estimate that abbreviations inflate."""
    return float(len(re.findall(r"\w[\"'’”)]*[.!?]+(?=[\"'’”)]*(?:\s|$))", text)))


def list_share(text: str) -> float:
    """Share of the lines with text that are list items, 0 to 1; a line of prose on its own has 0."""
    lines = lines_of(text)
    return sum(map(is_list_item, lines)) / len(lines) if lines else 0.0


def num_list_items(text: str) -> float:
    """How many lines are list items."""
    return float(sum(map(is_list_item, lines_of(text))))


def mean_word_length(text: str) -> float:
    """Mean number of letters and digits in a word."""
    words = words_of(text)
    return sum(sum(map(str.isalnum, word)) for word in words) / len(words) if words else 0.0


def casual_marks(text: str) -> float:
    """Contractions and exclamation marks for every 100 words."""
    words = num_words(text)
    return 100 * (len(_CONTRACTION.findall(text)) + text.count("!")) / words if words else 0.0


def reading_ease(text: str) -> float:
    """Flesch's reading ease: about 100 for short words in short sentences, about 0 for the contrary (Flesch, 1948).

    Syllables are the places where a word may be hyphenated and one more, which counts a few too little. A text of no
    closed sentence counts as one sentence.
    """
    words = words_of(text)
    if not words:
        return 0.0
    hyphenation = _hyphenation()
    syllables = sum(1 + len(hyphenation.positions(word.strip("\"'().,;:!?"))) for word in words)
    return 206.835 - 1.015 * len(words) / max(num_sentences(text), 1.0) - 84.6 * syllables / len(words)


def sentiment(text: str) -> float:
    """VADER's compound score, -1 for the worst and 1 for the best that one can say (Hutto and Gilbert, 2014)."""
    return float(_vader().polarity_scores(text)["compound"])


@functools.cache
def _hyphenation() -> Any:
    import pyphen

    return pyphen.Pyphen(lang="en_US")


@functools.cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType(
    {
        measured.name: measured
        for measured in (
            MeasuredBy("words", "words", num_words),
            MeasuredBy("characters", "characters", num_characters),
            MeasuredBy("sentences", "sentences", num_sentences),
            MeasuredBy("list_share", "share of lines, 0 to 1", list_share, "mean"),
            MeasuredBy("list_items", "lines", num_list_items),
            MeasuredBy("mean_word_length", "characters", mean_word_length),
            MeasuredBy("casual_marks", "marks for every 100 words", casual_marks),
            MeasuredBy("reading_ease", "Flesch's points, 100 is easy", reading_ease),
            MeasuredBy("sentiment", "VADER's score, -1 to 1", sentiment),
        )
    }
)
