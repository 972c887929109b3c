"""The machine or machines that a run is on: device, arithmetic, and how processes work together. Knows no model.

Under `accelerate launch` or `torchrun` every process has a share of each step's passes; gradients are added up over
processes, so that one and several take the same steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from meet_training.errors import TrainingError

# Processor flags under which bfloat16 products are faster than float32 ones.
FAST_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Machine:
    """One process of a run, `rank` of `num_processes`."""

    device: torch.device
    rank: int = 0
    num_processes: int = 1

    @classmethod
    def join(cls, wanted: Literal["auto", "cpu", "cuda"]) -> Machine:
        """Finds the device and, where the process was launched as one of several, the others (by Accelerate)."""
        device = choose_device(wanted)
        if not torch.distributed.is_available() or "WORLD_SIZE" not in os.environ:
            return cls(device)
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu")
        return cls(state.device, state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and tells progress."""
        return self.rank == 0

    def share(self, passes: Sequence[T]) -> Sequence[T]:
        """This process's part of a step's passes, which come longest first."""
        return passes[self.rank :: self.num_processes]

    def add(self, tensor: Tensor) -> None:
        """Sums a tensor over processes, in place."""
        if self.num_processes > 1:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over processes; one that has none for a parameter counts as zero."""
        if self.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Until every process is here."""
        if self.num_processes > 1:
            torch.distributed.barrier()


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
