"""What the stages ask of controls, whatever kind they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from meet_bundle import LoraControls, SoftPromptControls

if TYPE_CHECKING:
    from torch.nn import Parameter


class ControlSet(Protocol):
    """The controls of one run, attached to one language model. Index k is the k-th preference."""

    names: tuple[str, ...]

    def parameters_of(self, control: int) -> list[Parameter]:
        """What is learned for a control; no other control reads or writes it."""

    def applied(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        """Within the block, row i of a batch is under control `rows[i]` (sorted, -1 first: uncontrolled)."""

    def state(self) -> dict[str, Any]:
        """Every learned tensor by name, for a checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""

    def save(self, control: int, folder: Path) -> None:
        """Writes a control in the ecosystem's own format."""

    def describe(self) -> LoraControls | SoftPromptControls:
        """What the manifest says of their kind."""
