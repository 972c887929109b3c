"""What the stages ask of controls, whatever kind they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from meet_bundle import LoraControls, SoftPromptControls

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter


class ControlSet(Protocol):
    """The controls of one run, attached to one language model. Index k is the k-th preference."""

    names: tuple[str, ...]

    def parameters_of(self, control: int) -> list[Parameter]:
        """What is learned for a control; no other control reads or writes it."""

    def virtual_ids(self, control: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that stand before the prompt, and between prompt and reply, under a control; -1 is uncontrolled."""

    def applied(self, token_controls: Tensor) -> AbstractContextManager[None]:
        """Within the block, token t of row b is under control `token_controls[b, t]`, -1 for none; (B, T) or (B, 1)."""

    def state(self) -> dict[str, Any]:
        """Every learned tensor by name, `control/where`, for a checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""

    def centre(self, around: Sequence[int]) -> None:
        """Moves the mean of those controls out of every control into the model, where that can be done exactly: what is
        under one control stays as it was, and uncontrolled becomes the middle between them."""

    def detach(self, model: Module) -> None:
        """Gives the model its own layers back, and what of the controls is exported inside it."""

    def save(self, control: int, folder: Path) -> None:
        """Writes a control in the ecosystem's own format."""

    def load(self, control: int, folder: Path) -> None:
        """Takes a control that was saved. Raises TrainingError where it is of another shape."""

    def first_token_id(self, control: int) -> int | None:
        """Id of a soft prompt's first virtual token."""

    def describe(self) -> LoraControls | SoftPromptControls:
        """What the manifest says of their kind."""
