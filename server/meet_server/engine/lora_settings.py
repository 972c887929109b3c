"""Which of vLLM's LoRA settings suit a bundle. Knows vLLM's arguments, not its symbols. What the user gives wins."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from meet_bundle import LoraControls
from meet_server.errors import ServerError

# What vLLM accepts for --max-lora-rank. A larger one than needed slows every request.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Adapters in one batch where each takes a slot: memory for its whole size, whether used or not. More than this take
# turns. On CPUs adapters take no slots, and only the number of requests sets a limit.
SLOTS = 16
# Mixes that are kept. On CPUs one is a few numbers; where it takes a slot it is an adapter's size in each worker.
MIXES, SLOTTED_MIXES = 256, 32
# How many controls without a shared A one mix may have where it takes a slot: their ranks add up.
STACKED = 2
# Layers whose adapters take slots on CPUs too (`resident_lora`).
SLOTTED_MODULES = frozenset({"embed_tokens", "lm_head"})

DUAL_STREAM = "VLLM_LORA_ENABLE_DUAL_STREAM"

Defaults = dict[str, list[Any]]


def prepare_environment(*, cuda: bool) -> None:
    """On CUDA, adapters beside the base layers in a stream of their own, not after them. For processes that start."""
    if cuda:
        os.environ.setdefault(DUAL_STREAM, "1")


def lora_defaults(controls: LoraControls, *, cpu: bool) -> Defaults:
    """Arguments of `vllm serve`, by their names without dashes. Raises ServerError for a rank that is not served."""
    slotted = takes_slots(controls, cpu=cpu)
    rank = controls.rank
    if slotted and not controls.shared_a and rank * STACKED <= LORA_RANKS[-1]:
        rank *= STACKED
    defaults: Defaults = {
        "enable-lora": [],
        "max-loras": [SLOTS if slotted else MIXES],
        "max-lora-rank": [lora_rank(rank)],
        # Leaves embeddings and the output layer unwrapped where no control touches them.
        "lora-target-modules": list(controls.target_modules),
    }
    if not cpu:
        defaults["specialize-active-lora"] = []  # kernels for the adapters in a batch, not for as many as could be
    return defaults


def keep_in_memory(args: Namespace, controls: LoraControls, num_controls: int, *, cpu: bool) -> None:
    """Has every control and as many mixes stay in the workers' memory, unless the user said how many adapters."""
    if args.max_cpu_loras is None:
        num_mixes = SLOTTED_MIXES if takes_slots(controls, cpu=cpu) else MIXES
        args.max_cpu_loras = max(num_controls + num_mixes, args.max_loras)


def max_mixes(args: Namespace, num_controls: int) -> int:
    """How many mixes stay in the workers' memory beside that many controls."""
    return max(1, int(args.max_cpu_loras) - num_controls)


def max_parts(controls: LoraControls, args: Namespace, *, cpu: bool) -> int | None:
    """How many controls one mix may have, or None for any number."""
    if controls.shared_a or not takes_slots(controls, cpu=cpu):
        return None
    return max(1, int(args.max_lora_rank) // controls.rank)


def takes_slots(controls: LoraControls, *, cpu: bool) -> bool:
    """Whether each adapter of a batch is copied into a slot of its own."""
    return not cpu or not SLOTTED_MODULES.isdisjoint(controls.target_modules)


def lora_rank(rank: int) -> int:
    """The tightest rank that vLLM has kernels for."""
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ServerError(f"the controls have rank {rank}; vLLM serves up to {LORA_RANKS[-1]}")
