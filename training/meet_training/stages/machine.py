"""What arithmetic a machine is good at. Knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from meet_training.errors import TrainingError

# Processor flags under which bfloat16 products are faster than float32 ones.
FAST_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to train on. Raises TrainingError where CUDA is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: 'cuda' was asked for and PyTorch sees no CUDA device; use auto or cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic; `auto` is bfloat16 where the device is fast at it."""
    if wanted == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_is_fast_at_bf16()
        wanted = "bfloat16" if fast else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def cpu_is_fast_at_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor says that it multiplies bfloat16. Not measured: the same machine must always answer
    alike, or the same seed would not give the same bundle."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not FAST_BF16_FLAGS.isdisjoint(flags.split())
