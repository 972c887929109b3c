"""Requests of different preferences in one batch do not touch each other, and leavers leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import Server
from tiny_bundle import reference_replies

CONTROLS = (None, "concise", "detailed", None)
PROMPTS = [f"What is {word}?" for word in ("rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist")]
NUM_TOKENS = 24


async def ask(client: httpx.AsyncClient, prompt: str, control: str | None) -> list[int]:
    """Token ids of a greedy reply."""
    reply = await client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": prompt}],
            "preference": control,
            "temperature": 0,
            "max_tokens": NUM_TOKENS,
            "return_token_ids": True,
        },
    )
    reply.raise_for_status()
    token_ids: list[int] = reply.json()["choices"][0]["token_ids"]
    return token_ids


@pytest.fixture(scope="module")
def reference(bundle: Path) -> dict[tuple[str, str | None], list[int]]:
    """What transformers, and PEFT with the control, reply."""
    return {
        (prompt, control): reply
        for control in set(CONTROLS)
        for prompt, reply in zip(PROMPTS, reference_replies(bundle, control, PROMPTS, NUM_TOKENS), strict=True)
    }


def test_32_at_once_equal_each_alone_equal_transformers_and_peft(
    server: Server, reference: dict[tuple[str, str | None], list[int]]
) -> None:
    asked = [(prompt, control) for prompt in PROMPTS for control in CONTROLS]
    assert len(asked) == 32

    async def run() -> tuple[list[list[int]], list[list[int]]]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            together = await asyncio.gather(*(ask(client, *each) for each in asked))
            alone = [await ask(client, *each) for each in asked]
        return list(together), alone

    together, alone = asyncio.run(run())
    expected = [reference[each] for each in asked]
    assert len({tuple(reply) for reply in expected}) > 16  # the comparison can tell them apart
    assert together == expected
    assert alone == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_generation(server: Server, stream: bool) -> None:
    body = {"prompt": "rain", "max_tokens": 400, "ignore_eos": True, "stream": stream, "preference": "concise"}

    async def leave() -> None:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=300) as client,
            client.stream("POST", "/v1/completions", json=body) as reply,
        ):
            async for _ in reply.aiter_bytes():
                break

    async def cut() -> None:
        task = asyncio.create_task(leave())
        await until(lambda: server.engine.get_num_unfinished_requests() > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    start = time.monotonic()
    asyncio.run(cut())
    asyncio.run(until(lambda: server.engine.get_num_unfinished_requests() == 0))
    assert time.monotonic() - start < 30


async def until(condition: Any, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


def test_seeded_requests_whose_prompts_are_read_in_pieces_are_answered_alike(server: Server) -> None:
    """In vLLM 0.32 on a CPU the first of these ends the engine."""
    body = {
        "messages": [{"role": "user", "content": "rain and snow " * 25}],
        "seed": 7,
        "temperature": 1,
        "max_tokens": 8,
        "return_token_ids": True,
    }

    async def run() -> list[list[int]]:
        limits = httpx.Limits(max_connections=48)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            bodies = [body | {"preference": ("concise", None)[i % 2], "cache_salt": f"salt-{i}"} for i in range(48)]
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in bodies))
        return [reply.raise_for_status().json()["choices"][0]["token_ids"] for reply in replies]

    replies = asyncio.run(run())
    assert replies[::2] == [replies[0]] * 24
    assert replies[1::2] == [replies[1]] * 24
