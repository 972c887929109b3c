"""The kernel of `lora_kernel.cpp`: compiled for this processor on first use, kept, and called by its address.

Knows nothing of vLLM. Where it cannot be compiled or loaded there is none, which is logged once, and products of
`cpu_product` are used in its place.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
# As in the source.
MAX_COLUMNS = 1024
_FUNCTIONS = {torch.float32: "meet_add_float32", torch.bfloat16: "meet_add_bfloat16"}
_COMPILE_S = 120
CPUINFO = Path("/proc/cpuinfo")
# What says in it which instructions there are, on x86 and on Arm.
_OF_PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU variant", "CPU part")

logger = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "a_of", "bounds")),
        *((name, ctypes.c_int64) for name in ("rank", "in_", "out", "controls", "slices")),
    )


class _Batch(ctypes.Structure):
    """As in the source."""

    _fields_ = (("strengths", ctypes.c_void_p), ("order", ctypes.c_void_p), ("tokens", ctypes.c_int64))


class KernelBatch:
    """What every layer is told of a batch of T tokens, made once a step.

    `strengths` is (T, U) float32, `order` int64: the tokens that have a control, those that have the same ones side by
    side.
    """

    def __init__(self, strengths: Tensor, order: Tensor) -> None:
        self.strengths, self.order = strengths.contiguous(), order.contiguous()
        self._batch = _Batch(self.strengths.data_ptr(), self.order.data_ptr(), len(order))
        self.address = ctypes.addressof(self._batch)
        self.num_tokens, self.num_controls = strengths.shape


class KernelLayer:
    """The matrices of U controls for one layer, in the kernel's order.

    `a` is (num_a, rank, in), `b` (U, rank, out), both of one dtype; `a_of[s][u]` says which A control u has for slice
    s of the outputs, whose sizes are `slices`. Raises ValueError where the kernel does not take them (`takes`).
    """

    def __init__(self, a: Tensor, b: Tensor, a_of: Sequence[Sequence[int]], slices: Sequence[int]) -> None:
        if not takes(a.dtype, a.shape[0], b.shape[0], a.shape[1]):
            raise ValueError(f"A is {a.dtype} {tuple(a.shape)}, B {tuple(b.shape)}: the kernel does not take that")
        (_, rank, self._in), (self._controls, _, self._out) = a.shape, b.shape
        self._function = _functions()[a.dtype]
        bounds = torch.tensor([0, *slices], dtype=torch.int64).cumsum(0)
        self._kept = (a.contiguous(), b.contiguous(), torch.tensor(a_of, dtype=torch.int64), bounds)
        addresses = [tensor.data_ptr() for tensor in self._kept]
        self._layer = _Layer(*addresses, rank, self._in, self._out, self._controls, len(slices))
        self._address = ctypes.addressof(self._layer)
        self._dtype = a.dtype

    def add(self, y: Tensor, x: Tensor, batch: KernelBatch) -> None:
        """y (..., out) += what the controls make of x (..., in), in place, for the batch's T tokens in both.

        Raises ValueError for other sizes or dtypes, which the kernel would read as if they were these. What is asked
        of the tensors here is what takes little time, which counts where tokens are few.
        """
        num_tokens, dtype = batch.num_tokens, self._dtype
        if (
            x.numel() != num_tokens * self._in
            or y.numel() != num_tokens * self._out
            or x.dtype != dtype
            or y.dtype != dtype
            or batch.num_controls != self._controls
        ):
            raise ValueError(
                f"outputs {y.dtype} {tuple(y.shape)}, inputs {x.dtype} {tuple(x.shape)}, {num_tokens} tokens with "
                f"{batch.num_controls} controls; the layer is {dtype} {self._in} to {self._out} of {self._controls}"
            )
        if not x.is_contiguous():
            x = x.contiguous()
        if y.is_contiguous():
            self._function(self._address, batch.address, y.data_ptr(), x.data_ptr())
            return
        whole = y.contiguous()
        self._function(self._address, batch.address, whole.data_ptr(), x.data_ptr())
        y.copy_(whole)


def takes(dtype: torch.dtype, num_a: int, num_controls: int, rank: int) -> bool:
    """Whether there is a kernel, for that dtype, and so many columns fit into it."""
    return dtype in _FUNCTIONS and max(num_a, num_controls) * rank <= MAX_COLUMNS and bool(_functions())


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., None]]:
    """By dtype; empty where they cannot be had."""
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None)
        logger.warning("LoRA goes by products, not by its kernel, which cannot be compiled: %s %s", error, said or "")
        return {}
    functions: dict[torch.dtype, Any] = {dtype: library[name] for dtype, name in _FUNCTIONS.items()}
    for function in functions.values():
        function.argtypes = [ctypes.c_void_p] * 4
        function.restype = None
    return functions


def _compiled() -> Path:
    """The library, compiled unless it is kept. Raises OSError or SubprocessError, and ValueError for a bad `CXX`."""
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    made_of = [SOURCE.read_bytes(), " ".join([*compiler, *FLAGS]).encode(), _processor()]
    made_of.append(subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=_COMPILE_S).stdout)
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    folder = _folder()
    library = folder / f"lora_kernel-{digest[:32]}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            made = Path(own) / library.name
            command = [*compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_S)
            made.replace(library)  # whole or not at all, whoever else compiles it now
    return library


def _folder() -> Path:
    """`kernels` in `$MEET_CACHE` or in `meet` of the user's cache folder; a new folder where that cannot be written."""
    own = os.environ.get("MEET_CACHE")
    try:
        cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meet"
        (cache / "kernels").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / "kernels"):
            return cache / "kernels"
    except (OSError, RuntimeError):  # a container's file system that only reads, or its user without a home
        return Path(tempfile.mkdtemp(prefix="meet-kernels-"))


def _processor() -> bytes:
    """What `-march=native` depends on."""
    lines = CPUINFO.read_text().splitlines()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(_OF_PROCESSOR))).encode()
