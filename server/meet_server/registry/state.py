"""What was changed of a bundle's preferences while it is served, as a document, and what comes of it. Pure.

Every change is a function from a state to the next; none knows how either is kept. The bundle itself never changes:
revision 0 of a preference is the bundle's own, later ones are contents that the store keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meet_bundle import Manifest, Preference, SoftPromptControls
from meet_bundle.manifest import overlap
from meet_server.errors import RequestError, ServerError

FORMAT_VERSION = 1
MAX_REVISIONS = 8  # kept to roll back to, the one that is served among them

Record = Callable[[str], Preference]
"""The preference that a stored content is of, as it was trained. Raises ServerError where its record is damaged."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Revision(_Part):
    """One content that a preference has had since the bundle was made."""

    number: int = Field(ge=1)
    content: str = Field(pattern=r"^[0-9a-f]{64}$", description="name of the content in the store")


class Entry(_Part):
    """What differs from the bundle in one preference. None: as the control's own record says."""

    description: str | None = None
    aliases: tuple[str, ...] | None = None
    enabled: bool = True
    removed: bool = False
    revisions: tuple[Revision, ...] = ()
    current: int = Field(default=0, ge=0, description="number of the revision that is served; 0 is the bundle's own")
    last: int = Field(default=0, ge=0, description="the highest number that was ever given")

    @property
    def content(self) -> str | None:
        """The stored content that is served, or None for the bundle's own."""
        return next((r.content for r in self.revisions if r.number == self.current), None)


class State(_Part):
    """All of it. `generation` grows by one with every change."""

    format_version: int = FORMAT_VERSION
    generation: int = 0
    entries: dict[str, Entry] = {}

    @property
    def contents(self) -> frozenset[str]:
        """Every content that may still be served or rolled back to."""
        return frozenset(r.content for entry in self.entries.values() for r in entry.revisions)

    def entry(self, name: str) -> Entry:
        return self.entries.get(name) or Entry()

    def but(self, name: str, entry: Entry | None) -> State:
        """The next state, in which this preference is so; None leaves no trace of it."""
        entries = {**self.entries, name: entry} if entry else {k: v for k, v in self.entries.items() if k != name}
        return State(generation=self.generation + 1, entries=entries)

    def as_if(self, name: str, entry: Entry | None) -> State:
        """The same generation with this preference otherwise: where what was committed cannot be served."""
        return self.but(name, entry).model_copy(update={"generation": self.generation})


def added(state: State, manifest: Manifest, name: str, content: str) -> State:
    """With a preference that was not there. Raises RequestError `preference_exists`."""
    entry = state.entry(name)
    in_bundle = any(p.name == name for p in manifest.preferences)
    if (in_bundle or entry.revisions) and not entry.removed:
        raise RequestError("preference_exists", f"{name!r} exists; update it, or remove it first", param="name")
    return state.but(name, _with(Entry(last=entry.last), content))


def updated(state: State, manifest: Manifest, name: str, content: str) -> State:
    """With a new content, which is served from now on. Raises RequestError `preference_not_found`."""
    return state.but(name, _with(_existing(state, manifest, name), content))


def changed(state: State, manifest: Manifest, name: str, fields: Mapping[str, Any]) -> State:
    """With other `description`, `aliases` or `enabled`, or with the revision of that number served again.

    Raises RequestError `preference_not_found`, `revision_not_found`, `default_preference`.
    """
    entry = _existing(state, manifest, name)
    update = dict(fields)
    if "revision" in update:
        number = update["current"] = update.pop("revision")
        known = ([0] if any(p.name == name for p in manifest.preferences) else []) + [r.number for r in entry.revisions]
        if number not in known:
            raise RequestError(
                "revision_not_found",
                f"{name} has no revision {number}; there are {', '.join(map(str, known))}",
                param="revision",
            )
    if update.get("enabled") is False:
        _check_not_default(manifest, name)
    return state.but(name, entry.model_copy(update=update))


def removed(state: State, manifest: Manifest, name: str) -> State:
    """Without it. Raises RequestError `preference_not_found`, `default_preference`."""
    entry = _existing(state, manifest, name)
    _check_not_default(manifest, name)
    return state.but(name, Entry(removed=True, last=entry.last))


def former(state: State, manifest: Manifest, name: str) -> list[State]:
    """The state as if an older revision of a preference were served: each of them, the newest first."""
    entry = state.entry(name)
    numbers = [r.number for r in entry.revisions] + ([0] if any(p.name == name for p in manifest.preferences) else [])
    older = sorted((number for number in numbers if number < entry.current), reverse=True)
    return [state.as_if(name, entry.model_copy(update={"current": number})) for number in older]


def without(state: State, name: str) -> State:
    """The state as if a preference were disabled."""
    return state.as_if(name, state.entry(name).model_copy(update={"enabled": False}))


def as_bundled(state: State, name: str) -> State:
    """The state as if the bundle's own control of a preference were served."""
    return state.as_if(name, state.entry(name).model_copy(update={"current": 0}))


def damaged(state: State, record: Record) -> dict[str, ServerError]:
    """Why a preference cannot be what the state says, of each whose content has no record that can be read."""
    found = {}
    for name, entry in state.entries.items():
        if entry.content is not None and entry.enabled:
            try:
                record(entry.content)
            except ServerError as error:
                found[name] = error
    return found


def effective(manifest: Manifest, state: State, record: Record) -> Manifest:
    """The bundle's manifest with all that was changed: what requests may ask for.

    Mappings to a preference that is not served are left out. Raises RequestError `invalid_label`, `label_taken`
    where two preferences would have one, `control_refused` where two soft prompts would have a row of the model in
    common, and `last_preference` where none would be left.
    """
    in_bundle = {p.name: p for p in manifest.preferences}
    names = [*in_bundle, *(name for name in state.entries if name not in in_bundle)]
    preferences = []
    for name in names:
        entry = state.entry(name)
        if entry.removed or not entry.enabled:
            continue
        preference = in_bundle.get(name) if entry.content is None else record(entry.content)
        if preference is not None:
            preferences.append(_described(preference, name, entry))
    if not preferences:
        raise RequestError("last_preference", "a server needs a preference; this is the last one", param="name")
    return _hanging_together(manifest, preferences)


def _hanging_together(manifest: Manifest, preferences: list[Preference]) -> Manifest:
    there = {p.name for p in preferences}
    without = tuple(
        p if p.opposite is None or p.opposite in there else p.model_copy(update={"opposite": None}) for p in preferences
    )
    mapped = {
        field: {value: name for value, name in getattr(manifest, field).items() if name in there}
        for field in ("verbosity", "effort")
    }
    soft = manifest.controls if isinstance(manifest.controls, SoftPromptControls) else None
    if soft and (found := overlap(preferences, soft.num_virtual_tokens)):
        raise RequestError(
            "control_refused",
            f"{found[0]} and {found[1]} would have rows of the model in common, from {found[2]}; a soft prompt has "
            "rows of its own: remove or disable one of the two",
        )
    try:
        return Manifest.model_validate({**dict(manifest), **mapped, "preferences": without})
    except ValidationError as error:
        message = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise RequestError("label_taken", message, param="aliases") from None


def _described(preference: Preference, name: str, entry: Entry) -> Preference:
    update: dict[str, Any] = {"name": name}
    if entry.description is not None:
        update["description"] = entry.description
    if entry.aliases is not None:
        update["aliases"] = entry.aliases
    try:
        return Preference.model_validate({**dict(preference), **update})
    except ValidationError as error:
        message = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise RequestError("invalid_label", message, param="aliases") from None


def _with(entry: Entry, content: str) -> Entry:
    number = entry.last + 1
    kept = entry.revisions[-(MAX_REVISIONS - 1) :]
    revisions = (*kept, Revision(number=number, content=content))
    return entry.model_copy(update={"revisions": revisions, "current": number, "last": number})


def _existing(state: State, manifest: Manifest, name: str) -> Entry:
    entry = state.entry(name)
    if entry.removed or not (entry.revisions or any(p.name == name for p in manifest.preferences)):
        raise RequestError("preference_not_found", f"{name!r} is no preference", param="name")
    return entry


def _check_not_default(manifest: Manifest, name: str) -> None:
    if name == manifest.default:
        raise RequestError(
            "default_preference",
            f"{name} is the bundle's default; without it, requests that ask for nothing would silently get nothing",
            param="name",
        )
