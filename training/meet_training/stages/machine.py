"""The machine or machines that a run is on: device, arithmetic, and how processes work together. Knows no model.

Under `accelerate launch` or `torchrun` every process has a share of each step's passes; gradients are added up over
processes, so that one and several take the same steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from meet_bundle.errors import MeetError
from meet_training.errors import TrainingError

# Processor flags under which bfloat16 products are faster than float32 ones.
FAST_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# Gradients are sent together up to this size: many small messages cost more than their content.
BUCKET_BYTES = 32 << 20

# How long a process waits for the others. They wait while the main one samples replies of the base or writes a large
# bundle; that one of them died is noticed by the launcher, not by this.
PATIENCE = timedelta(hours=12)

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
        if not torch.distributed.is_available() or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            return cls(device)
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        return cls(state.device, state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and tells progress."""
        return self.rank == 0

    def share(self, passes: Sequence[T], cost: Callable[[T], float]) -> list[T]:
        """This process's part of a step's passes. Every process must call it with the same ones."""
        return shares(passes, self.num_processes, cost)[self.rank]

    def add(self, tensor: Tensor) -> None:
        """Sums a tensor over processes, in place."""
        if self.num_processes > 1:
            torch.distributed.all_reduce(tensor)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over processes. A parameter that got none in any of them keeps none, so that its optimiser
        leaves it alone, as with one process. Those of sharded parameters were summed when they were computed."""
        if self.num_processes == 1:
            return
        own = [parameter for parameter in parameters if not is_sharded(parameter)]
        found = torch.tensor([parameter.grad is not None for parameter in own], dtype=torch.int32, device=self.device)
        self.add(found)
        gradients = []
        for parameter, num in zip(own, found.tolist(), strict=True):
            if num and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in buckets(gradients, BUCKET_BYTES):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self.add(flat)
            for gradient, piece in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def of_main(self, value: T) -> T:
        """What the main process calls this with."""
        if self.num_processes == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def check_alike(self, what: str, value: object) -> None:
        """Raises TrainingError, in every process, where they do not all have the same value."""
        values = self._of_all(value)
        odd = next((rank for rank, other in enumerate(values) if other != values[0]), None)
        if odd is not None:
            raise TrainingError(
                f"processes 0 and {odd} differ in {what} ({values[0]} and {values[odd]}): every machine must see the "
                f"same configuration, data, base and output folder"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends when the block of every process has ended. A mistake in one is raised in all of them."""
        mistake: MeetError | None = None
        try:
            yield
        except MeetError as error:
            mistake = error
        said = [text for text in self._of_all(None if mistake is None else str(mistake)) if text is not None]
        if mistake is not None and str(mistake) == said[0]:
            raise mistake
        if said:
            raise TrainingError(said[0])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block of the main process ends before those of the others begin. A mistake there is raised in all."""
        if not self.is_main:
            with self.together():
                pass
            yield
            return
        with self.together():
            yield

    def _of_all(self, value: Any) -> list[Any]:
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value)
        return values


def shares(passes: Sequence[T], num_processes: int, cost: Callable[[T], float]) -> list[list[T]]:
    """Parts of about equal cost: the dearest goes first, each to whoever has least so far. In the given order."""
    loads = [0.0] * num_processes
    indices: list[list[int]] = [[] for _ in range(num_processes)]
    costs = [cost(each) for each in passes]
    for index in sorted(range(len(passes)), key=lambda i: -costs[i]):
        least = loads.index(min(loads))
        loads[least] += costs[index]
        indices[least].append(index)
    return [[passes[index] for index in sorted(own)] for own in indices]


def buckets(tensors: Sequence[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """Neighbours of one dtype, together at most `max_bytes`; a larger tensor is by itself."""
    found: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not found or found[-1][0].dtype != tensor.dtype or size + tensor.nbytes > max_bytes:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.nbytes
    return found


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only its part of it."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def leave() -> None:
    """Says goodbye to the other processes, where there are some, at the end of a program."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
        # Where it is emulated, as on a T4, it is said to be supported too.
        on_cuda = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else cpu_is_fast_at_bf16()
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
