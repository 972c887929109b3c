"""What was asked in a request, and the manifest, to the mix that is to be applied. Pure.

One source of truth per request: places that disagree are an error that names both, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meet_bundle import Manifest, Preference
from meet_server.errors import RequestError
from meet_server.preferences.mix import quantised
from meet_server.preferences.words import FIELD, NO_CONTROL, Asked, Said


@dataclass(frozen=True, slots=True)
class Mix:
    """Preferences by name, in manifest order, each with its strength as it is applied. Empty: uncontrolled."""

    parts: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """The canonical form: `concise=1`, `concise=0.7,formal=0.5`, `none`."""
        return ",".join(f"{name}={number(strength)}" for name, strength in self.parts) or NO_CONTROL


class Resolver:
    """Looks up labels of one manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._preferences = manifest.preferences
        self._by_label: dict[str, Preference] = {
            label: preference for preference in manifest.preferences for label in (preference.name, *preference.aliases)
        }
        self._default = Mix() if manifest.default is None else self.mix(Asked(((manifest.default, None),)), FIELD)
        self._verbosity: Mapping[str, str] = manifest.verbosity
        self._effort: Mapping[str, str] = manifest.effort

    def preference(self, label: str) -> Preference | None:
        """The preference that a name or an alias stands for."""
        return self._by_label.get(label)

    def from_verbosity(self, value: object) -> Asked | None:
        """OpenAI's `verbosity`, where the manifest maps this value."""
        return _mapped(self._verbosity, value)

    def from_effort(self, value: object) -> Asked | None:
        """Anthropic's `effort`, where the manifest maps this value."""
        return _mapped(self._effort, value)

    def resolve(self, said: Iterable[Said]) -> Mix:
        """The one mix that all places agree on; the manifest's default where none says anything.

        Raises RequestError: `unknown_preference`, `strength_out_of_range`, `conflicting_preferences`.
        """
        first: tuple[str, Mix] | None = None
        for each in said:
            mix = self.mix(each.asked, each.place)
            if first is None:
                first = (each.place, mix)
            elif mix != first[1]:
                raise RequestError(
                    "conflicting_preferences",
                    f"{first[0]} asks for {first[1]} and {each.place} for {mix}; ask in one place, or for the same",
                    param=each.place,
                )
        return self._default if first is None else first[1]

    def mix(self, asked: Asked, place: str) -> Mix:
        """Names and strengths for the labels of one place, in manifest order; one that rounds to 0 is none."""
        strengths: dict[str, float] = {}
        for label, strength in asked.parts:
            preference = self._by_label.get(label)
            if preference is None:
                raise self._unknown(label, place)
            if preference.name in strengths:
                raise RequestError(
                    "invalid_preference",
                    f"{place} names {preference.name!r} more than once: {label!r} is an alias of it",
                    param=place,
                )
            strengths[preference.name] = quantised(_in_range(preference, strength, place))
        return Mix(tuple((p.name, strengths[p.name]) for p in self._preferences if strengths.get(p.name)))

    def _unknown(self, label: str, place: str) -> RequestError:
        known = ", ".join(f"{p.name} (or {', '.join(p.aliases)})" if p.aliases else p.name for p in self._preferences)
        return RequestError(
            "unknown_preference", f"{place} asks for {label!r}, which is no preference; known: {known}", param=place
        )


def number(value: float) -> str:
    """The shortest text that reads back as the same number: `1`, `0.7`."""
    return repr(value).removesuffix(".0")


def _in_range(preference: Preference, strength: float | None, place: str) -> float:
    if strength is None:
        return preference.calibration.recommended if preference.calibration is not None else 1.0
    low, high = preference.strength_range
    if not low <= strength <= high:
        raise RequestError(
            "strength_out_of_range",
            f"{place}: the strength of {preference.name} is {number(strength)}; "
            f"{number(low)} to {number(high)} is allowed",
            param=place,
        )
    return strength


def _mapped(mapping: Mapping[str, str], value: object) -> Asked | None:
    name = mapping.get(value) if isinstance(value, str) else None
    return None if name is None else Asked(((name, None),))
