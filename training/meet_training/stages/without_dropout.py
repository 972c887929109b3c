"""A frozen model as it is at inference, in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within the block nothing of the model is dropped at random; afterwards it trains, or not, as before."""
    trained = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(trained)
