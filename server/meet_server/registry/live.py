"""Which controls are loaded and proved. Knows neither the engine nor HTTP.

An engine's integer id stands for one content for as long as the process lives: used again with other
weights it would silently serve the old ones. So ids come from one counter and are never given twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meet_bundle import Preference
from meet_server.errors import RequestError
from meet_server.preferences.mix import content_key
from meet_server.preferences.resolve import Mix

# vLLM numbers adapters that its own `--lora-modules` brings from 1 upwards; ours stay clear of them.
FIRST_ID = 1 << 20

MIX = "mix"  # what the engine calls a mix; its digest says which
NO_PATH = Path()


@dataclass(frozen=True, slots=True)
class LoadedControl:
    """One control as the engine knows it. `digest` is that of its files, `version` the short form of it.

    `token_ids` are a soft prompt's virtual tokens; a LoRA adapter has none.
    A mix has `parts`, the controls that it is made of with their strengths, and the digest of those.
    """

    name: str
    digest: str
    id: int
    path: Path
    token_ids: tuple[int, ...] = ()
    parts: tuple[tuple[LoadedControl, float], ...] = ()

    @property
    def version(self) -> str:
        """What the content is called in replies; of a mix, that of each part."""
        return ",".join(part.version for part, _ in self.parts) or self.digest[:12]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a request gets: the mix, and the control that realises it (None: uncontrolled)."""

    mix: Mix
    control: LoadedControl | None

    def __str__(self) -> str:
        """As the reply's header says it: `concise=1; version=0123456789ab`, or `none`. A mix has a version per part."""
        return str(self.mix) if self.control is None else f"{self.mix}; version={self.control.version}"


class LiveControls:
    """Controls by the name of their preference. A control is published only after it was proved."""

    def __init__(self, max_parts: int | None = None) -> None:
        """`max_parts` is how many controls one mix may have, where the engine sets a limit."""
        self._max_parts = max_parts
        self._ids = itertools.count(FIRST_ID)
        self._by_name: dict[str, LoadedControl] = {}

    def number(self, preference: Preference, path: Path) -> LoadedControl:
        """A control with an id of its own, not yet published."""
        return LoadedControl(preference.name, preference.digest, self.next_id(), path.absolute())

    def next_id(self) -> int:
        """An id that was never given before."""
        return next(self._ids)

    def publish(self, control: LoadedControl) -> None:
        """From now on requests get this control for its name."""
        self._by_name[control.name] = control

    def withdraw(self, name: str) -> None:
        """From now on no request gets the control of that name."""
        del self._by_name[name]

    def arrange(self, names: Iterable[str]) -> None:
        """Has the controls stand in this order, all of them."""
        self._by_name = {name: self._by_name[name] for name in names}

    def get(self, name: str) -> LoadedControl | None:
        """The control of that preference, if it is loaded."""
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[LoadedControl]:
        return iter(self._by_name.values())

    def strength_range(self, preference: Preference) -> tuple[float, float]:
        """The strengths that a request may ask for, as far as the kind of control knows any."""
        return preference.strength_range

    def lookup(self, mix: Mix) -> Applied:
        """The control that realises a mix. Raises RequestError `unsupported_mix` where none can."""
        if not mix.parts:
            return Applied(mix, None)
        parts = tuple((self._by_name[name], strength) for name, strength in mix.parts)
        if len(parts) == 1 and parts[0][1] == 1.0:
            return Applied(mix, parts[0][0])
        if self._max_parts is not None and len(parts) > self._max_parts:
            raise RequestError(
                "unsupported_mix",
                f"{mix} cannot be served: the controls do not share one A, so that a mix takes the sum of their ranks, "
                f"and the engine has room for {self._max_parts}",
                param="preference",
            )
        digest = content_key((control.digest, strength) for control, strength in parts)
        return Applied(mix, LoadedControl(MIX, digest, self.next_id(), NO_PATH, parts=parts))
