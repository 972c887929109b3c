"""A model without its generation configuration: for sampling from its probabilities, and for being saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_generation_config(model: Any) -> Iterator[Any]:
    """Within the block the model has an empty one. Gives its own, which it has again afterwards."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield own
    finally:
        model.generation_config = own
