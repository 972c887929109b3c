"""What a run tells whoever started it. Subclass `Callback` and override what you want to hear.

Raising in a callback stops the run; it goes on from its last checkpoint when it is started again. Of several processes
the main one alone is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meet_bundle import Bundle
    from meet_training.config import TrainConfig
    from meet_training.stages.optimise import Curve, TrainProgress


class Callback:
    """Hears what happens in a run; every method does nothing unless it is overridden."""

    def on_start(self, config: TrainConfig) -> None:
        """The run begins, or goes on. `config` has every default put in."""

    def on_phase(self, what: str) -> None:
        """Something slow begins that has no steps: fetching the base, writing the bundle."""

    def on_part(self, what: str, num_done: int, num_all: int) -> None:
        """So much of something slow is done that is counted but has no steps: examples rendered."""

    def on_warning(self, what: str) -> None:
        """Something that may end the run later, or spoil what it makes. It goes on."""

    def on_step(self, progress: TrainProgress) -> None:
        """A step of a stage is done."""

    def on_stage_end(self, stage: str, curve: Curve) -> None:
        """A stage is done."""

    def on_bundle(self, bundle: Bundle) -> None:
        """The bundle is written."""


class Callbacks(Callback):
    """Several as one, told in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_start(self, config: TrainConfig) -> None:
        for callback in self._callbacks:
            callback.on_start(config)

    def on_phase(self, what: str) -> None:
        for callback in self._callbacks:
            callback.on_phase(what)

    def on_part(self, what: str, num_done: int, num_all: int) -> None:
        for callback in self._callbacks:
            callback.on_part(what, num_done, num_all)

    def on_warning(self, what: str) -> None:
        for callback in self._callbacks:
            callback.on_warning(what)

    def on_step(self, progress: TrainProgress) -> None:
        for callback in self._callbacks:
            callback.on_step(progress)

    def on_stage_end(self, stage: str, curve: Curve) -> None:
        for callback in self._callbacks:
            callback.on_stage_end(stage, curve)

    def on_bundle(self, bundle: Bundle) -> None:
        for callback in self._callbacks:
            callback.on_bundle(bundle)
