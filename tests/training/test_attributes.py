"""Attributes against values worked out by hand."""

import pytest

from meet_training.data.attributes import ATTRIBUTES, is_list_item
from meet_training.evaluation import attributes as by_evaluation


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("words", "Water it well, then wait.", 5),
        ("words", "- one\n- two  three", 3),
        ("words", "", 0),
        ("characters", "  ab c \n", 4),
        ("sentences", "Stop! Wait 2.5 hours. Then go?", 3),
        ("sentences", 'She said "yes." He left', 1),
        ("list_share", "- a\n- b\n\n* c\n1. d", 1),
        ("list_share", "Here you are:\n- a\n- b\n- c", 0.75),
        ("list_share", "One line of prose.", 0),
        ("list_share", "1) one item", 1),
        ("list_share", "", 0),
        ("list_items", "So:\n- a\n\n2. b\nc", 2),
        ("mean_word_length", "ab, cdef!", 3),
        ("mean_word_length", "", 0),
        ("casual_marks", "It's fine, don't worry! Really it is all fine", 100 * 3 / 9),
        ("casual_marks", "the dog's bowl is here now", 100 / 6),
        ("casual_marks", "I'm here", 50),
        ("reading_ease", "The cat sat. It ran.", 206.835 - 1.015 * 5 / 2 - 84.6),
        ("reading_ease", "wonderful information", 206.835 - 1.015 * 2 - 84.6 * 7 / 2),  # won-der-ful, in-for-ma-tion
        ("reading_ease", " - ", 0),
        ("sentiment", "The table has four legs.", 0),
        ("sentiment", "", 0),
        ("sentiment", "good", 1.9 / (1.9**2 + 15) ** 0.5),  # the lexicon's 1.9, as the paper makes it a score
    ],
)
def test_measure(name: str, text: str, expected: float) -> None:
    assert ATTRIBUTES[name].measure(text) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    "line", ["- a", "* a", "• a", "– a", "12. a", "120. a", "3) a", "(3) a", "a. b", "  + a", "- **A**: b"]
)
def test_list_items(line: str) -> None:
    assert is_list_item(line)


@pytest.mark.parametrize(
    "line", ["", "-", "- ", "well-known", "**Bold** start", "1999 was cold", "-5 degrees", "A dog"]
)
def test_lines_that_are_no_list_items(line: str) -> None:
    assert not is_list_item(line)


def test_every_attribute_has_its_own_name_and_a_unit() -> None:
    assert all(attribute.name == name and attribute.unit for name, attribute in ATTRIBUTES.items())


def test_evaluation_measures_with_the_same_attributes() -> None:
    assert by_evaluation.ATTRIBUTES is ATTRIBUTES
