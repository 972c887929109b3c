"""How long each phase of a command took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from meet_cli.progress import duration


class Phases:
    """Seconds by phase, in the order in which the phases began."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes, if it ends well, to a phase."""
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def __str__(self) -> str:
        """`training 12 min 3 s, replies of the bundle 2 min 1 s`."""
        return ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
