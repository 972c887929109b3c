"""What LoRA controls add to one decoder layer: our kernel against products of vLLM's, as ratios of times taken in turn.

    python tests/benchmarks/bench_kernel.py [--json FILE] [--rounds N]

The four linear layers of SmolLM2-135M in bfloat16, rank 8, one A for all controls, each token with one control. Sixteen
copies of each are gone through, so that matrices come from where they would in a model and not from the first cache.
OMP_NUM_THREADS says on how many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

LAYERS = {"qkv": (576, (576, 192, 192)), "o": (576, (576,)), "gate_up": (576, (1536, 1536)), "down": (1536, (576,))}
RANK, COPIES, CALLS = 8, 16, 64
TOKENS, CONTROLS = (1, 8, 32, 128, 512), (1, 4)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="times that each side is taken")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    found = list(rows(options.rounds))
    if options.json is not None:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": found}, indent=2) + "\n")
    return 0


def rows(rounds: int) -> Iterator[dict[str, float]]:
    print(f"microseconds a layer, {torch.get_num_threads()} threads; quartiles of the ratios")
    for num_controls in CONTROLS:
        for num_tokens in TOKENS:
            kernel, products = sides(num_tokens, num_controls)
            pairs = [(timed(kernel), timed(products)) for _ in range(rounds)]
            low, middle, high = statistics.quantiles([ours / other for ours, other in pairs], n=4)
            ours, other = (statistics.median(each) * 1e6 for each in zip(*pairs, strict=True))
            print(
                f"{num_tokens} tokens, {num_controls} controls: kernel / products {middle:.3f} "
                f"({low:.3f}, {high:.3f}), {ours:.1f} / {other:.1f}",
                flush=True,
            )
            yield {"tokens": num_tokens, "controls": num_controls, "ratio": middle, "low": low, "high": high,
                   "kernel_us": ours, "products_us": other}  # fmt: skip


def sides(num_tokens: int, num_controls: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """One pass through all four layers, by the kernel and by products."""
    from meet_server.engine import resident_weights
    from meet_server.engine.resident_weights import Fused, Strengths, pack

    table = torch.zeros(num_tokens, num_controls)
    table[torch.arange(num_tokens), torch.arange(num_tokens) % num_controls] = 1
    strengths = Strengths(table)
    takes, made = resident_weights.takes, []
    for allowed in (takes, lambda *_: False):
        resident_weights.takes = allowed
        layers = map(layer_of, LAYERS.values())
        made.append([[pack(layer, controls(layer, num_controls)) for _ in range(COPIES)] for layer in layers])
    resident_weights.takes = takes
    assert isinstance(made[0][0][0], Fused), "there is no kernel here; the server's log says why"
    inputs = [
        (torch.zeros(num_tokens, sum(out), dtype=torch.bfloat16), torch.randn(num_tokens, in_).bfloat16())
        for in_, out in LAYERS.values()
    ]

    def side(packed: list[list[Any]]) -> Callable[[], None]:
        copies = [cycle(each) for each in packed]

        def layer() -> None:
            for (y, x), copy in zip(inputs, copies, strict=True):
                next(copy).add(y, x, strengths)

        return layer

    kernel, products = map(side, made)
    return kernel, products


def layer_of(shape: tuple[int, tuple[int, ...]]) -> Any:
    return SimpleNamespace(output_slices=shape[1], tp_size=1, input_size=shape[0])


def controls(layer: Any, num: int) -> list[Any]:
    """As vLLM keeps them, with one A."""
    a = (torch.randn(RANK, layer.input_size) / layer.input_size**0.5).bfloat16()
    num_slices = len(layer.output_slices)
    found = []
    for _ in range(num):
        b = [(torch.randn(size, RANK) * 1e-3).bfloat16() for size in layer.output_slices]
        factors = ([a] * num_slices, b) if num_slices > 1 else (a, b[0])
        found.append(SimpleNamespace(lora_a=factors[0], lora_b=factors[1], rank=RANK, is_packed=num_slices > 1))
    return found


def timed(layer: Callable[[], None]) -> float:
    """Seconds of one pass, of as many as make a measurement."""
    start = time.perf_counter()
    for _ in range(CALLS):
        layer()
    return (time.perf_counter() - start) / CALLS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
