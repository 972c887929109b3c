"""Which soft prompts are loaded, and what several of them at once are: their tokens one after the other.

Knows neither the engine nor HTTP. A soft prompt has no strength: nothing scales it that would be honest, so
anything but 1 is refused rather than ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from meet_bundle import Preference
from meet_server.errors import RequestError
from meet_server.preferences.resolve import Mix, number
from meet_server.registry.live import Applied, LiveControls, LoadedControl


class LiveSoftPrompts(LiveControls):
    """As LiveControls, for a bundle of soft prompts."""

    def __init__(self, num_virtual_tokens: int) -> None:
        super().__init__()
        self._num = num_virtual_tokens

    def number(self, preference: Preference, path: Path) -> LoadedControl:
        """A control with an id of its own and its virtual tokens, not yet published."""
        first = preference.first_token_id
        ids = () if first is None else tuple(range(first, first + self._num))
        return LoadedControl(preference.name, preference.digest, self.next_id(), path.absolute(), ids)

    def strength_range(self, preference: Preference) -> tuple[float, float]:  # noqa: ARG002
        """Whatever the manifest says."""
        return (1.0, 1.0)

    def lookup(self, mix: Mix) -> Applied:
        """One soft prompt, or several in the mix's order, which is the manifest's.

        Raises RequestError `unsupported_strength` for a strength other than 1.
        """
        for name, strength in mix.parts:
            if strength != 1.0:
                raise RequestError(
                    "unsupported_strength",
                    f"the strength of {name} is {number(strength)}; the controls of this model are soft prompts, "
                    "which are applied at strength 1 or not at all",
                    param="preference",
                )
        parts = [self._by_name[name] for name, _ in mix.parts]
        return Applied(mix, concatenated(parts) if parts else None)


def concatenated(parts: Sequence[LoadedControl]) -> LoadedControl:
    """One control of the tokens of several, at least one. Its version says which contents, in which order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    digest = hashlib.sha256("\n".join(part.digest for part in parts).encode()).hexdigest()
    ids = tuple(token_id for part in parts for token_id in part.token_ids)
    return LoadedControl("+".join(part.name for part in parts), digest, first.id, first.path, ids)
