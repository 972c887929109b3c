"""Proof that what is served is what was trained. Every control is proved before it serves a request.

The manifest holds, per preference, a reply and its log-probabilities under transformers + PEFT, with the
control and without. The engine is asked for the same, all controls and no control in one batch, as
requests will come. Wrong weights, wrong scaling, an adapter applied to nothing, or one that leaks into
its neighbours' rows all show here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meet_bundle import Preference, Probe
from meet_server.engine import releases
from meet_server.engine.controlled_client import ControlledEngine, applying, unobserved
from meet_server.engine.soft_prompts import prompt_ends_at
from meet_server.errors import EngineDied
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import LoadedControl


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest accepted difference of log-probabilities, in nats."""

    mean: float
    largest: float


# In float32 engine and transformers differ by the order of sums alone, orders of magnitude less than this.
# Margin for other hardware, and far below what a wrong adapter does.
FLOAT32 = Tolerance(mean=0.005, largest=0.02)
# In bfloat16 every operation rounds to 8 bits, and in another order: right controls of a 135M model come to about
# half of the mean, whatever the reference was computed in (docs/EXPERIMENTS.md). What a wrong adapter does within
# these bounds shows in the share of its effect.
HALF = Tolerance(mean=0.12, largest=1.0)

# The share of the recorded effect that counts as the control being applied.
APPLIED = (0.5, 1.5)


def tolerance(recorded_dtype: str, served_dtype: str) -> Tolerance:
    """The looser of what two dtypes allow. Quantised serving counts as half precision."""
    return FLOAT32 if recorded_dtype == served_dtype == "float32" else HALF


async def prove(engine: ControlledEngine, controls: Sequence[tuple[LoadedControl, Preference]]) -> None:
    """Raises ControlRefused, naming the control, for the first whose probe an engine does not reproduce."""
    asked = [(rank, *each) for rank in engine.ranks for each in controls]
    measured = await asyncio.gather(
        *(
            _log_probs(engine, preference, control if controlled else None, rank)
            for rank, control, preference in asked
            for controlled in (True, False)
        )
    )
    for (*_, preference), with_control, without in zip(asked, measured[::2], measured[1::2], strict=True):
        check(preference, with_control, without, tolerance(preference.probe.dtype, engine.dtype))


def check(
    preference: Preference, controlled: Sequence[float], uncontrolled: Sequence[float], allowed: Tolerance
) -> None:
    """Compares measured log-probabilities (nats, one per reply token) with the recorded ones."""
    probe = preference.probe
    _within(preference, "without the control", uncontrolled, probe.uncontrolled, allowed)
    share = effect_share(probe, controlled, uncontrolled)
    effect, _ = _difference(probe.controlled, probe.uncontrolled)
    # Where the control hardly moves its own probe, the share would be decided by rounding.
    if effect > allowed.mean / 2 and not APPLIED[0] < share < APPLIED[1]:
        raise ControlRefused(
            preference.name,
            f"its effect on its probe is {share:.2f} times what was recorded: the engine does not apply it as trained",
        )
    _within(preference, "with the control", controlled, probe.controlled, allowed)


def effect_share(probe: Probe, controlled: Sequence[float], uncontrolled: Sequence[float]) -> float:
    """How much of the recorded effect the engine shows: 1 as trained, 0 where nothing is applied.

    The measured difference that the control makes, projected on the recorded one. Both its parts come
    from one engine, so that most of what rounding does to them cancels. Above 1/2 means: nearer to the
    recorded control than to none.
    """
    recorded = [c - u for c, u in zip(probe.controlled, probe.uncontrolled, strict=True)]
    measured = [c - u for c, u in zip(controlled, uncontrolled, strict=True)]
    square = sum(r * r for r in recorded)
    return sum(m * r for m, r in zip(measured, recorded, strict=True)) / square if square else 1.0


def _within(
    preference: Preference, what: str, measured: Sequence[float], recorded: Sequence[float], allowed: Tolerance
) -> None:
    mean, largest = _difference(measured, recorded)
    # Written so that nan, which compares false, is refused.
    if not (mean <= allowed.mean and largest <= allowed.largest):
        raise ControlRefused(
            preference.name,
            f"the engine does not reproduce its probe {what}: log-probabilities differ by {mean:.3g} nats "
            f"in the mean and {largest:.3g} at most; {allowed.mean:g} and {allowed.largest:g} are allowed",
        )


async def _log_probs(
    engine: ControlledEngine, preference: Preference, control: LoadedControl | None, rank: int | None
) -> list[float]:
    """ln p of each reply token, from one prefill of prompt and reply together. `rank` is one of the engine's."""
    name, probe = preference.name, preference.probe
    request_id = f"probe-{name}-{'controlled' if control else 'uncontrolled'}-{rank}"
    where = {} if rank is None else {"data_parallel_rank": rank}
    with applying(control), unobserved(), prompt_ends_at(probe.start):
        outputs = engine.generate(releases.token_prompt(probe.token_ids), releases.probe_params(), request_id, **where)
    final: Any = None
    try:
        async for output in outputs:
            final = output
    except releases.engine_errors() as error:
        if engine.is_dead:
            raise EngineDied("the engine died while controls were proved; its own messages stand above") from error
        raise ControlRefused(name, f"its probe cannot be run: {error}") from error
    logprobs = final.prompt_logprobs
    return [
        logprobs[position][probe.token_ids[position]].logprob for position in range(probe.start, len(probe.token_ids))
    ]


def _difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean and largest absolute difference."""
    each = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return sum(each) / len(each), max(each)
