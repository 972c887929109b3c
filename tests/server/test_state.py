"""What changes come to, with no disk and no engine."""

from __future__ import annotations

from typing import Any

import pytest
from example_manifest import manifest, preference

from meet_bundle import Preference
from meet_server.errors import RequestError
from meet_server.registry.state import MAX_REVISIONS, State, added, changed, effective, removed, updated

BUNDLE = manifest()
CONTENTS = {f"{number:064x}": f"content-{number}" for number in range(20)}
IDS = list(CONTENTS)


def record(content: str) -> Preference:
    return preference("formal" if content == IDS[9] else "polite", description=CONTENTS[content])


def names(state: State) -> list[str]:
    return [p.name for p in effective(BUNDLE, state, record).preferences]


def described(state: State, name: str) -> str:
    return effective(BUNDLE, state, record).preference(name).description


def test_nothing_changed_is_the_bundle() -> None:
    assert effective(BUNDLE, State(), record) == BUNDLE


def test_add_update_roll_back_remove_add_again() -> None:
    one = added(State(), BUNDLE, "polite", IDS[1])
    assert names(one) == ["concise", "formal", "playful", "polite"]
    two = updated(one, BUNDLE, "polite", IDS[2])
    assert (described(one, "polite"), described(two, "polite")) == ("content-1", "content-2")
    back = changed(two, BUNDLE, "polite", {"revision": 1})
    assert described(back, "polite") == "content-1"
    three = updated(back, BUNDLE, "polite", IDS[3])
    assert [r.number for r in three.entry("polite").revisions] == [1, 2, 3]
    gone = removed(three, BUNDLE, "polite")
    assert names(gone) == names(State())
    again = added(gone, BUNDLE, "polite", IDS[4])
    assert again.entry("polite").current == 4  # numbers are never used twice
    assert again.generation == 6


def test_what_the_bundle_brought_can_be_updated_rolled_back_and_removed() -> None:
    two = updated(State(), BUNDLE, "formal", IDS[9])
    assert described(two, "formal") == "content-9"
    assert described(changed(two, BUNDLE, "formal", {"revision": 0}), "formal") == ""
    assert names(removed(two, BUNDLE, "formal")) == ["concise", "playful"]
    assert names(added(removed(two, BUNDLE, "formal"), BUNDLE, "formal", IDS[9])) == names(State())


def test_described_and_disabled() -> None:
    state = changed(State(), BUNDLE, "concise", {"description": "Few words.", "aliases": ("terse",)})
    found = effective(BUNDLE, state, record).preference("concise")
    assert (found.description, found.aliases) == ("Few words.", ("terse",))
    off = changed(state, BUNDLE, "concise", {"enabled": False})
    without = effective(BUNDLE, off, record)
    assert [p.name for p in without.preferences] == ["formal", "playful"]
    assert (without.verbosity, without.effort) == ({}, {})  # they meant it
    on = effective(BUNDLE, changed(off, BUNDLE, "concise", {"enabled": True}), record)
    assert on.preference("concise") == found
    assert on.verbosity == {"low": "concise"}


def test_only_so_many_revisions_are_kept() -> None:
    state = added(State(), BUNDLE, "polite", IDS[0])
    for content in IDS[1:12]:
        state = updated(state, BUNDLE, "polite", content)
    assert [r.number for r in state.entry("polite").revisions] == list(range(13 - MAX_REVISIONS, 13))
    assert len(state.contents) == MAX_REVISIONS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: added(s, BUNDLE, "concise", IDS[1]), "preference_exists"),
        (lambda s: updated(s, BUNDLE, "polite", IDS[1]), "preference_not_found"),
        (lambda s: changed(s, BUNDLE, "polite", {"enabled": False}), "preference_not_found"),
        (lambda s: changed(s, BUNDLE, "concise", {"revision": 1}), "revision_not_found"),
        (lambda s: removed(s, BUNDLE, "polite"), "preference_not_found"),
        (lambda s: removed(removed(s, BUNDLE, "formal"), BUNDLE, "formal"), "preference_not_found"),
    ],
)
def test_refusals(change: Any, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        change(State())
    assert caught.value.code == code


def test_what_would_not_hang_together() -> None:
    taken = changed(State(), BUNDLE, "formal", {"aliases": ("short",)})
    with pytest.raises(RequestError, match="short") as caught:
        effective(BUNDLE, taken, record)
    assert caught.value.code == "label_taken"
    with pytest.raises(RequestError, match="is no label"):
        effective(BUNDLE, changed(State(), BUNDLE, "formal", {"aliases": ("a b",)}), record)
    last = removed(removed(State(), BUNDLE, "formal"), BUNDLE, "playful")
    with pytest.raises(RequestError) as caught:
        effective(BUNDLE, removed(last, BUNDLE, "concise"), record)
    assert caught.value.code == "last_preference"


def test_a_default_that_went_away_would_silently_serve_the_base() -> None:
    bundle = manifest("formal")
    for change in (
        lambda: removed(State(), bundle, "formal"),
        lambda: changed(State(), bundle, "formal", {"enabled": False}),
    ):
        with pytest.raises(RequestError) as caught:
            change()
        assert caught.value.code == "default_preference"
