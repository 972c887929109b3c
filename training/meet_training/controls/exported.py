"""Reads controls back as anyone would: plain PEFT on a plain model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn


@contextmanager
def with_control(model: nn.Module, folder: Path) -> Iterator[nn.Module]:
    """The model under one exported LoRA control; the model itself is as before when the block ends."""
    from peft import PeftModel

    wrapped: Any = PeftModel.from_pretrained(model, str(folder))
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()
