"""Soft prompts under random arrival and abort: what stays is right, whatever came and went beside it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

from running_server import Soft

from meet_server.engine import releases
from meet_server.engine.controlled_client import applying
from meet_server.preferences.resolve import Mix

CONTROLS = ((), ("concise",), ("detailed",), ("concise", "formal"))
PROMPTS = tuple(tuple(range(start, start + length)) for start, length in ((3, 5), (3, 40), (60, 33), (100, 64)))
NUM_TOKENS = 6

requests = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.integers(0, len(CONTROLS) - 1),
        st.integers(0, 8),  # milliseconds until it comes
        st.none() | st.integers(0, NUM_TOKENS - 1),  # tokens after which its client leaves
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def expected(soft: Soft) -> dict[tuple[int, int], list[int]]:
    return {
        (prompt, control): soft.reference.reply(PROMPTS[prompt], CONTROLS[control], NUM_TOKENS)
        for prompt in range(len(PROMPTS))
        for control in range(len(CONTROLS))
    }


def test_random_arrivals_and_aborts(soft: Soft, expected: dict[tuple[int, int], list[int]]) -> None:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    engine, live = soft.server.engine, soft.server.app.state.served.live

    async def one(number: int, prompt: int, control: int, delay_ms: int, leaves_after: int | None) -> None:
        await asyncio.sleep(delay_ms / 1000)
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, output_kind=RequestOutputKind.CUMULATIVE)
        mix = Mix(tuple((name, 1.0) for name in CONTROLS[control]))
        tokens: list[int] = []
        with applying(live.lookup(mix).control):
            outputs = engine.generate(releases.token_prompt(PROMPTS[prompt]), params, f"arrival-{number}")
        async with aclosing(outputs):
            async for output in outputs:
                tokens = list(output.outputs[0].token_ids)
                assert output.prompt_token_ids == list(PROMPTS[prompt])
                if leaves_after is not None and len(tokens) > leaves_after:
                    break
        right = expected[prompt, control]
        assert tokens == right[: len(tokens)]
        if leaves_after is None:
            assert tokens == right

    async def all_of(case: Any) -> None:
        await asyncio.gather(*(one(number, *each) for number, each in enumerate(case)))

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests)
    def check(case: Any) -> None:
        soft.server.call(all_of(case))

    check()
