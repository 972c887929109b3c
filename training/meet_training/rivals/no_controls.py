"""No controls, where the stages ask for some: rivals that tune nothing but the model. A `ControlSet`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from meet_training.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter


class NoControls:
    """Groups of examples by name, and nothing to learn for any of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def parameters_of(self, control: int) -> list[Parameter]:  # noqa: ARG002
        return []

    def virtual_ids(self, control: int) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ARG002
        return (), ()

    @contextmanager
    def applied(self, token_controls: Tensor) -> Iterator[None]:  # noqa: ARG002
        yield

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is nothing to take back."""

    def centre(self, around: Sequence[int]) -> None:
        """They have nothing in common."""

    def detach(self, model: Module) -> None:
        """The model has its own layers already."""

    def first_token_id(self, control: int) -> int | None:  # noqa: ARG002
        return None

    def save(self, control: int, folder: Path) -> NoReturn:  # noqa: ARG002
        raise TrainingError("a rival without controls is no bundle")

    def load(self, control: int, folder: Path) -> NoReturn:  # noqa: ARG002
        raise TrainingError("a rival without controls starts from no bundle")

    def describe(self) -> NoReturn:
        raise TrainingError("a rival without controls is no bundle")
