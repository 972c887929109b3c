"""Which soft prompts are loaded, what several at once are, and that none of them has a strength."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from example_manifest import preference

from meet_server.errors import RequestError
from meet_server.preferences.resolve import Mix
from meet_server.registry.live import FIRST_ID
from meet_server.registry.soft_prompts import LiveSoftPrompts, concatenated

FIRSTS = {"concise": 104, "formal": 100}  # in another order than that of the manifest


@pytest.fixture
def live() -> LiveSoftPrompts:
    live = LiveSoftPrompts(4)
    for digit, (name, first) in enumerate(FIRSTS.items(), 1):
        each = preference(name, first_token_id=first).model_copy(update={"digest": f"{digit}" * 64})
        live.publish(live.number(each, Path(f"controls/{name}")))
    return live


def test_a_number_goes_with_the_run_of_its_virtual_tokens(live: LiveSoftPrompts) -> None:
    concise, formal = live
    assert (concise.token_ids, formal.token_ids) == ((104, 105, 106, 107), (100, 101, 102, 103))
    assert [each.id for each in live] == [FIRST_ID, FIRST_ID + 1]
    assert (concise.name, concise.digest) == ("concise", "1" * 64)
    assert concise.path == Path("controls/concise").absolute()
    assert live.number(preference("plain"), Path("controls/plain")).token_ids == ()
    assert live.number(preference("first", first_token_id=0), Path("x")).token_ids == (0, 1, 2, 3)


def test_one_is_itself_and_none_is_no_control(live: LiveSoftPrompts) -> None:
    applied = live.lookup(Mix((("formal", 1.0),)))
    assert applied.control is live.get("formal")
    assert str(applied) == f"formal=1; version={'2' * 12}"
    assert live.lookup(Mix()).control is None
    assert str(live.lookup(Mix())) == "none"


def test_several_stand_one_after_the_other_in_the_order_of_the_mix(live: LiveSoftPrompts) -> None:
    applied = live.lookup(Mix((("concise", 1.0), ("formal", 1.0))))
    control = applied.control
    assert control is not None
    assert control.token_ids == (104, 105, 106, 107, 100, 101, 102, 103)
    assert control.name == "concise+formal"  # which the metrics count as a mix
    assert control.digest == hashlib.sha256(f"{'1' * 64}\n{'2' * 64}".encode()).hexdigest()
    assert str(applied) == f"concise=1,formal=1; version={control.digest[:12]}"
    first = live.get("concise")
    assert first is not None
    assert (control.id, control.path) == (first.id, first.path)


def test_the_version_of_several_says_which_contents_in_which_order(live: LiveSoftPrompts) -> None:
    concise, formal = live
    versions = {concatenated(parts).version for parts in ([concise, formal], [formal, concise], [concise], [formal])}
    assert len(versions) == 4


@pytest.mark.parametrize("strength", [0.5, -1.0, 2.0, 1.0000001])
def test_a_strength_is_refused_rather_than_ignored(live: LiveSoftPrompts, strength: float) -> None:
    for parts in (
        (("formal", strength),),
        (("concise", 1.0), ("formal", strength)),
        (("formal", strength), ("x", 1.0)),
    ):
        with pytest.raises(RequestError, match=r"the strength of formal is .* or not at all") as caught:
            live.lookup(Mix(parts))
        assert (caught.value.code, caught.value.param) == ("unsupported_strength", "preference")


def test_the_manifests_range_of_strengths_is_none_of_theirs(live: LiveSoftPrompts) -> None:
    assert live.strength_range(preference("formal", strength_range=(0.0, 1.5))) == (1.0, 1.0)
