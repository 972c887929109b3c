"""Controls on vLLM's own parallelism: two engines behind one server, and one engine in two halves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from controls import new_control
from running_server import Server
from test_batching import NUM_TOKENS, PROMPTS, ask
from tiny_bundle import reference_replies

from meet_bundle import Manifest, open_bundle
from meet_server.engine.proof import prove
from meet_server.registry.changing import commit
from meet_server.registry.state import added, removed
from meet_server.registry.store import Store, beside

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["data", "tensor"])
def parallel(
    request: pytest.FixtureRequest, bundle: Path, run_server: Callable[..., Iterator[Server]]
) -> Iterator[Server]:
    yield from run_server(bundle, f"--{request.param}-parallel-size=2")


def replies(server: Server, asked: list[tuple[str, str | None]]) -> list[list[int]]:
    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            return list(await asyncio.gather(*(ask(client, *each) for each in asked)))

    return asyncio.run(run())


def num_served(server: Server) -> list[float]:
    """Requests that each engine has finished."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = re.findall(r'^vllm:request_success_total\{engine="(\d)",.*\} (\S+)$', text, re.M)
    return [sum(float(num) for engine, num in found if int(engine) == (rank or 0)) for rank in server.engine.ranks]


def test_whichever_engine_answers_says_what_transformers_and_peft_say(parallel: Server, bundle: Path) -> None:
    for control in ("concise", "detailed", None):
        expected = reference_replies(bundle, control, PROMPTS, NUM_TOKENS)
        assert replies(parallel, [(prompt, control) for prompt in PROMPTS * 2]) == expected * 2
    assert min(num_served(parallel)) > 4


def test_a_preference_that_is_added_reaches_every_engine(parallel: Server, bundle: Path) -> None:
    opened, store = open_bundle(bundle), Store(beside(bundle))
    content = store.keep(new_control(opened, "polite", 11))
    commit(opened, store, lambda state: added(state, opened.manifest, "polite", content))
    try:
        for _ in range(100):
            if "polite" in httpx.get(f"{parallel.url}/v1/preferences", timeout=60).text:
                break
            parallel.call(asyncio.sleep(0.1))
        several = replies(parallel, [("What is rain?", "polite")] * 12)
        assert len({tuple(reply) for reply in several}) == 1
        assert several[0] != replies(parallel, [("What is rain?", None)])[0]
    finally:
        commit(opened, store, lambda state: removed(state, opened.manifest, "polite"))


def test_a_control_is_proved_in_every_engine(parallel: Server, manifest: Manifest) -> None:
    control = next(iter(parallel.app.state.served.live))
    before = num_served(parallel)
    parallel.call(prove(parallel.engine, [(control, manifest.preference(control.name))]))
    assert num_served(parallel) == [num + 2 for num in before]  # with the control and without
