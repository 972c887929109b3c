"""Watches the outputs of one request on their way out: how many tokens, when the first came, how it ended."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from meet_server.engine import releases
from meet_server.metrics import MIX, NONE, Generated, Outcome
from meet_server.registry.live import LoadedControl

Observe = Callable[[Generated], None]


def label_of(control: LoadedControl | None) -> str:
    """The name that a control is counted under; strengths of one preference are one, mixes are one."""
    if control is None:
        return NONE
    if len(control.parts) == 1:
        return control.parts[0][0].name
    # Several soft prompts are one control of all their tokens; no name of a preference has a plus.
    return MIX if control.parts or "+" in control.name else control.name


async def observed(
    outputs: AsyncGenerator[Any, None], label: str, params: Any, observe: Observe
) -> AsyncGenerator[Any, None]:
    """The outputs as they are. Calls `observe` once, however the request ends."""
    began = time.perf_counter()
    first: float | None = None
    adds = releases.are_deltas(params)
    num_prompt_tokens, lengths = 0, dict[int, int]()
    outcome: Outcome = "aborted"
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if first is None:
                    first = time.perf_counter() - began
                    num_prompt_tokens = len(output.prompt_token_ids or ())
                for each in output.outputs:
                    num = len(each.token_ids)
                    lengths[each.index] = lengths.get(each.index, 0) + num if adds else num
                yield output
        outcome = "ok"
    except Exception:
        outcome = "error"
        raise
    finally:
        duration = time.perf_counter() - began
        observe(Generated(label, outcome, num_prompt_tokens, tuple(lengths.values()), first, duration))
