"""Ids are never reused, mixes are named by content, and what cannot be applied is refused in one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_manifest import preference

from meet_server.errors import RequestError
from meet_server.preferences.resolve import Mix
from meet_server.registry.live import LiveControls


def test_ids_are_never_given_twice() -> None:
    live = LiveControls()
    controls = [live.number(preference("concise"), Path("controls/concise")) for _ in range(3)]
    assert all(each.path.is_absolute() for each in controls)  # it is other processes that read them
    ids = [each.id for each in controls]
    assert len(set(ids)) == 3
    assert min(ids) >= 1 << 20  # vLLM's own adapters count from 1


def test_lookup() -> None:
    live = LiveControls()
    control = live.number(preference("concise"), Path("controls/concise"))
    assert live.get("concise") is None
    live.publish(control)
    assert live.lookup(Mix()).control is None
    assert str(live.lookup(Mix())) == "none"
    applied = live.lookup(Mix((("concise", 1.0),)))
    assert applied.control == control
    assert str(applied) == "concise=1; version=000000000000"


@pytest.fixture
def live() -> LiveControls:
    return published(LiveControls())


def published(live: LiveControls) -> LiveControls:
    for name, digit in (("concise", "1"), ("formal", "2")):
        each = preference(name).model_copy(update={"digest": digit * 64})
        live.publish(live.number(each, Path(f"controls/{name}")))
    return live


def test_mixes_and_strengths_name_their_controls_and_versions(live: LiveControls) -> None:
    applied = live.lookup(Mix((("concise", -0.5), ("formal", 1.0))))
    assert applied.control is not None
    assert applied.control.parts == ((live.get("concise"), -0.5), (live.get("formal"), 1.0))
    assert str(applied) == f"concise=-0.5,formal=1; version={'1' * 12},{'2' * 12}"
    assert str(live.lookup(Mix((("concise", 0.7),)))) == f"concise=0.7; version={'1' * 12}"


def test_every_lookup_of_a_mix_has_an_id_of_its_own_and_the_same_content(live: LiveControls) -> None:
    first, second = (live.lookup(Mix((("concise", 0.5),))).control for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert first.digest == second.digest


def test_a_mix_that_the_engine_has_no_room_for_is_refused_with_the_reason() -> None:
    live = published(LiveControls(max_parts=1))
    assert live.lookup(Mix((("concise", 0.5),))).control is not None
    with pytest.raises(RequestError, match=r"do not share one A.*has room for 1") as caught:
        live.lookup(Mix((("concise", 1.0), ("formal", 1.0))))
    assert (caught.value.code, caught.value.param) == ("unsupported_mix", "preference")
