"""Parses the words in which a request asks for preferences. Knows no manifest: labels are not looked up.

Every parser returns an `Asked`, or None for "not said here". Errors are `RequestError`s with code
`invalid_preference` that name the place at fault.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from meet_server.errors import RequestError

HEADER = "X-Meet-Preference"
FIELD = "preference"
NO_CONTROL = "none"  # in a header and a model name; JSON has null

# More than any reply can follow, and a bound on what one request can make the server build.
MAX_LABELS = 8
MAX_LABEL_LENGTH = 64

# float() would also take "nan", "1_0" and Arabic digits.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one place of a request asks for: labels as written, in their order, each with a strength.

    A strength of None was not named. No parts at all ask for no control.
    """

    parts: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """An `Asked` and the place it was found in, as errors name it."""

    place: str
    asked: Asked


UNCONTROLLED = Asked()


def from_field(value: object, place: str = FIELD) -> Asked:
    """The JSON field: a label, a list of labels, `{label: strength}`, or null for no control.

    `place` is what errors call it.
    """
    if value is None:
        return UNCONTROLLED
    if isinstance(value, str):
        return _checked([(value, None)], place)
    if isinstance(value, list):
        return _checked([(_label(item, place), None) for item in value], place)
    if isinstance(value, dict):
        return _checked([(label, _strength(label, number, place)) for label, number in value.items()], place)
    raise _invalid(
        place,
        f"{place} is {_json_kind(value)}; it must be a label, a list of labels, "
        "an object {label: strength}, or null for no control",
    )


def from_header(text: str) -> Asked:
    """The header `concise=0.7,formal=0.5`, `concise`, or `none` for no control."""
    if text.strip().lower() == NO_CONTROL:
        return UNCONTROLLED
    return _checked([_header_part(part) for part in text.split(",")], HEADER)


def from_model_suffix(suffix: str) -> Asked:
    """What stands behind `NAME:` in a model name: `concise`, `concise+formal`, or `none` for no control."""
    if suffix.lower() == NO_CONTROL:
        return UNCONTROLLED
    return _checked([(label, None) for label in suffix.split("+")], "model")


def _checked(parts: list[tuple[str, float | None]], param: str) -> Asked:
    if not parts:
        raise _invalid(param, f"{param} is empty; name a preference, or ask for no control with null")
    if len(parts) > MAX_LABELS:
        raise _invalid(param, f"{param} names {len(parts)} preferences; at most {MAX_LABELS} can be mixed")
    labels = [label for label, _ in parts]
    for label in labels:
        if not label or len(label) > MAX_LABEL_LENGTH:
            raise _invalid(
                param, f"{param} has a label of {len(label)} characters; 1 to {MAX_LABEL_LENGTH} are allowed"
            )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise _invalid(param, f"{param} names {twice!r} more than once")
    return Asked(tuple(parts))


def _header_part(text: str) -> tuple[str, float | None]:
    label, equals, number = (piece.strip(" \t") for piece in text.partition("="))
    if not equals:
        return label, None
    if not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        raise _invalid(HEADER, f"{HEADER}: the strength of {label!r} is {number!r}; it must be a finite number")
    return label, float(number)


def _label(item: object, place: str) -> str:
    if not isinstance(item, str):
        raise _invalid(place, f"{place} holds {_json_kind(item)}; every item of the list must be a label")
    return item


def _strength(label: str, number: object, place: str) -> float:
    # bool is an int in Python; `{"concise": true}` is a mistake, not a strength of 1.
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _invalid(place, f"{place}: the strength of {label!r} is {_json_kind(number)}; it must be a number")
    try:
        strength = float(number)
    except OverflowError:
        strength = math.inf
    if not math.isfinite(strength):
        raise _invalid(place, f"{place}: the strength of {label!r} is not finite")
    return strength


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object")


def _invalid(param: str, message: str) -> RequestError:
    return RequestError("invalid_preference", message, param=param)
