"""A request's own `seed` on CPUs, inside the engine's worker processes. Knows nothing of MEET.

vLLM 0.32 samples a token also for a request whose prompt is not read to its end yet, throws it away, and turns
the request's generator back by an offset that CUDA generators have and CPU ones lack: "CPU Generator does not use
offset" ends the whole engine, so one client that sends `seed` with a prompt that is read in pieces stops everybody.

Until its prompt is read a request has sampled nothing that counts, so here its generator starts anew from the seed.
That is exact but for a request that was preempted in mid-reply and is read again: its later tokens may differ from
those of a run in which it was not preempted.

When it goes: once vLLM's CPU runner does this itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def rewinding(bookkeeping: Callable[..., Any]) -> Callable[..., Any]:
    """`CPUModelRunner._bookkeeping_sync` with generators started anew in place of turned back."""

    @functools.wraps(bookkeeping)
    def bookkeeping_sync(runner: Any, *args: Any, **kwargs: Any) -> Any:
        generators: dict[int, Any] = runner.input_batch.generators
        if not generators:
            return bookkeeping(runner, *args, **kwargs)
        unread = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        aside = {row: generators.pop(row) for row in unread if row in generators}
        for generator in aside.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return bookkeeping(runner, *args, **kwargs)
        finally:
            generators.update(aside)

    return bookkeeping_sync


def install() -> None:
    """Puts it into vLLM's CPU runner, once."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if not hasattr(CPUModelRunner._bookkeeping_sync, "__wrapped__"):
        CPUModelRunner._bookkeeping_sync = rewinding(CPUModelRunner._bookkeeping_sync)
