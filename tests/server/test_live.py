"""Ids are never reused, and what cannot be applied yet is refused in one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_manifest import preference

from meet_server.errors import RequestError
from meet_server.preferences.resolve import Mix
from meet_server.registry.live import LiveControls


def test_ids_are_never_given_twice() -> None:
    live = LiveControls()
    ids = [live.number(preference("concise"), Path("controls/concise")).id for _ in range(3)]
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


@pytest.mark.parametrize("parts", [(("concise", 0.5),), (("concise", 1.0), ("formal", 1.0))])
def test_mixes_and_strengths_are_refused(parts: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(RequestError, match="applies one preference, at strength 1") as caught:
        LiveControls().lookup(Mix(parts))
    assert caught.value.code == "unsupported_mix"
