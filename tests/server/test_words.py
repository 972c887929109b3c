"""A request's words, place by place, and what is refused in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meet_server.errors import RequestError
from meet_server.preferences.words import (
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    UNCONTROLLED,
    Asked,
    from_field,
    from_header,
    from_model_suffix,
)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (None, ()),
        ("concise", (("concise", None),)),
        (["concise"], (("concise", None),)),
        (["formal", "concise"], (("formal", None), ("concise", None))),
        ({"concise": 1}, (("concise", 1.0),)),
        ({"concise": 0.7, "formal": -0.5}, (("concise", 0.7), ("formal", -0.5))),
        ("x" * MAX_LABEL_LENGTH, (("x" * MAX_LABEL_LENGTH, None),)),
        (list("abcdefgh"), tuple((label, None) for label in "abcdefgh")),
    ],
)
def test_field(value: object, parts: object) -> None:
    assert from_field(value) == Asked(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "preference is a number; it must be a label, a list of labels"),
        (True, "preference is true or false"),
        (1.5, "preference is a number"),
        ("", "label of 0 characters"),
        ("x" * 65, "label of 65 characters"),
        ([], "preference is empty"),
        ({}, "preference is empty"),
        ([None], "preference holds null; every item of the list must be a label"),
        ([["concise"]], "preference holds a list"),
        (["concise", "concise"], "names 'concise' more than once"),
        ({"concise": True}, "the strength of 'concise' is true or false; it must be a number"),
        ({"concise": "1"}, "the strength of 'concise' is a string"),
        ({"concise": None}, "the strength of 'concise' is null"),
        ({"concise": {}}, "the strength of 'concise' is an object"),
        ({"concise": math.nan}, "the strength of 'concise' is not finite"),
        ({"concise": math.inf}, "not finite"),
        ({"concise": 10**400}, "not finite"),
        (list("abcdefghi"), f"at most {MAX_LABELS} can be mixed"),
    ],
)
def test_field_refused(value: object, message: str) -> None:
    with pytest.raises(RequestError, match="preference") as caught:
        from_field(value)
    assert message in caught.value.message
    assert (caught.value.code, caught.value.param) == ("invalid_preference", "preference")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("none", ()),
        (" None ", ()),
        ("concise", (("concise", None),)),
        ("concise=1", (("concise", 1.0),)),
        ("concise=0.7,formal=0.5", (("concise", 0.7), ("formal", 0.5))),
        (" concise = .5 , formal ", (("concise", 0.5), ("formal", None))),
        ("concise=-1e-2", (("concise", -0.01),)),
    ],
)
def test_header(text: str, parts: object) -> None:
    assert from_header(text) == Asked(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "concise,", "=1", "concise=", "concise=x", "concise=nan", "concise=1e999", "concise=1_0",
     "concise=inf", "concise=٣", "concise=1=2", "concise,concise"],
)  # fmt: skip
def test_header_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_header(text)
    assert (caught.value.code, caught.value.param) == ("invalid_preference", "X-Meet-Preference")


def test_model_suffix() -> None:
    assert from_model_suffix("none") == from_model_suffix("None") == UNCONTROLLED
    assert from_model_suffix("concise") == Asked((("concise", None),))
    assert from_model_suffix("concise+formal") == Asked((("concise", None), ("formal", None)))
    with pytest.raises(RequestError) as caught:
        from_model_suffix("concise+")
    assert caught.value.param == "model"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=70), inner, max_size=10),
    max_leaves=12,
)


def parsed(parse: Callable[[Any], Asked], value: object) -> Asked | None:
    """What a parser makes of a value; None where it refuses it as it should."""
    try:
        return parse(value)
    except RequestError as error:
        if error.code != "invalid_preference":
            raise
        return None


@given(JSON)
def test_field_parses_or_refuses_anything(value: object) -> None:
    asked = parsed(from_field, json.loads(json.dumps(value)))
    for _, strength in asked.parts if asked else ():
        assert strength is None or math.isfinite(strength)


@given(st.text(max_size=200))
@pytest.mark.parametrize("parse", [from_header, from_model_suffix])
def test_text_parses_or_is_refused(parse: Callable[[str], Asked], text: str) -> None:
    asked = parsed(parse, text)
    assert asked is None or all(0 < len(label) <= 64 for label, _ in asked.parts)
