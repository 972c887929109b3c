"""Words and manifest to the mix that is applied."""

from __future__ import annotations

import pytest
from example_manifest import resolver
from hypothesis import given
from hypothesis import strategies as st

from meet_server.errors import RequestError
from meet_server.preferences.resolve import Mix
from meet_server.preferences.words import UNCONTROLLED, Asked, Said, from_field, from_header


def said(*places: tuple[str, object]) -> list[Said]:
    return [Said(place, from_field(value)) for place, value in places]


@pytest.mark.parametrize(
    ("value", "mix"),
    [
        (None, "none"),
        ("concise", "concise=1"),
        ("short", "concise=1"),
        ("playful", "playful=1.5"),  # its calibration recommends that
        ({"playful": 1}, "playful=1"),
        (["formal", "brief"], "concise=1,formal=1"),  # in manifest order
        ({"formal": 0.5, "concise": 0.7}, "concise=0.7,formal=0.5"),
        ({"concise": -0.5}, "concise=-0.5"),
        ({"concise": 0}, "none"),
        ({"concise": -0.0}, "none"),
        ({"concise": 0.126, "formal": 0.7000001}, "concise=0.13,formal=0.7"),  # as it is applied
        ({"concise": 1e-05}, "none"),
    ],
)
def test_mix(value: object, mix: str) -> None:
    assert str(resolver().resolve(said(("preference", value)))) == mix


def test_nothing_said_is_the_default() -> None:
    assert resolver().resolve([]) == Mix()
    assert resolver(default="formal").resolve([]) == Mix((("formal", 1.0),))


def test_null_beats_the_default() -> None:
    assert resolver(default="formal").resolve([Said("preference", UNCONTROLLED)]) == Mix()


def test_unknown_label_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        resolver().resolve(said(("preference", "angry")))
    error = caught.value
    assert (error.code, error.param) == ("unknown_preference", "preference")
    assert error.message == (
        "preference asks for 'angry', which is no preference; known: concise (or short, brief), formal, playful"
    )


def test_places_that_disagree_are_named() -> None:
    with pytest.raises(RequestError) as caught:
        resolver().resolve(said(("preference", "concise"), ("model", "formal")))
    assert (caught.value.code, caught.value.param) == ("conflicting_preferences", "model")
    assert "preference asks for concise=1 and model for formal=1" in caught.value.message


def test_places_that_agree_may_both_speak() -> None:
    both = said(("preference", ["formal", "concise"]), ("X-Meet-Preference", {"short": 1, "formal": 1}))
    assert str(resolver().resolve(both)) == "concise=1,formal=1"


def test_name_and_alias_of_one_preference_are_refused() -> None:
    with pytest.raises(RequestError, match="'short' is an alias of it"):
        resolver().resolve(said(("preference", ["concise", "short"])))


@pytest.mark.parametrize("strength", [-0.01, 1.51, 1e9])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(RequestError, match=r"0 to 1\.5 is allowed") as caught:
        resolver().resolve(said(("preference", {"formal": strength})))
    assert caught.value.code == "strength_out_of_range"


@pytest.mark.parametrize(
    ("value", "asked"), [("low", Asked((("concise", None),))), ("high", None), (None, None), (3, None), ({}, None)]
)
def test_verbosity_and_effort_mean_what_the_manifest_says(value: object, asked: Asked | None) -> None:
    assert resolver().from_verbosity(value) == asked
    assert resolver().from_effort(value) == asked


@given(
    st.dictionaries(
        st.sampled_from(["concise", "formal", "playful"]),
        st.floats(min_value=0, max_value=1.5),
        min_size=1,
    )
)
def test_canonical_form_reads_back_as_the_same_mix(strengths: dict[str, float]) -> None:
    mix = resolver().resolve(said(("preference", strengths)))
    assert resolver().resolve([Said("X-Meet-Preference", from_header(str(mix)))]) == mix
