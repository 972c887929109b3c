"""Clients that leave, and many more than there is room for: nothing is left running, those let in are not slowed."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import time
from typing import Any

import httpx
import pytest
from running_server import Server
from test_batching import until

CONCURRENT = 24
OVERLOAD_S = float(os.environ.get("MEET_OVERLOAD_S", "300"))


def unfinished(server: Server) -> int:
    queue = server.app.state.served.queue
    return int(server.engine.get_num_unfinished_requests()) + queue.num_running + queue.num_waiting


@pytest.mark.parametrize("num", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_clients_that_leave_at_random_moments_leave_nothing_behind(server: Server, num: int) -> None:
    chance = random.Random(0)
    preferences: list[Any] = [None, "concise", {"concise": 0.6, "detailed": 0.3}]

    async def leave(client: httpx.AsyncClient, number: int) -> None:
        body = {"prompt": f"rain {number}", "max_tokens": 300, "ignore_eos": True, "stream": bool(number % 2)}
        task = asyncio.create_task(client.post("/v1/completions", json={**body, "preference": preferences[number % 3]}))
        await asyncio.sleep(chance.uniform(0, 0.15))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def run() -> None:
        limit = asyncio.Semaphore(CONCURRENT)

        async def one(number: int) -> None:
            async with limit:
                await leave(client, number)

        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            await asyncio.gather(*(one(number) for number in range(num)))

    asyncio.run(run())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(until(lambda: unfinished(server) == 0, 60))
    if num >= 10_000:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    reply = httpx.post(f"{server.url}/v1/completions", json={"prompt": "rain", "max_tokens": 2}, timeout=60)
    assert reply.status_code == 200


class Load:
    """Clients that ask again as soon as they were answered, and note how long the first token took."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.first_s: list[float] = []
        self.num_refused = 0

    async def run(self, num_clients: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=num_clients)
        async with httpx.AsyncClient(base_url=self._url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._ask_until(client, end) for _ in range(num_clients)))

    async def _ask_until(self, client: httpx.AsyncClient, end: float) -> None:
        body = {"prompt": "rain", "max_tokens": 48, "ignore_eos": True, "stream": True, "preference": "concise"}
        while time.monotonic() < end:
            start = time.monotonic()
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                if reply.status_code == 429:
                    assert int(reply.headers["retry-after"]) >= 1
                    self.num_refused += 1
                else:
                    assert reply.status_code == 200
                    first: float | None = None
                    async for _ in reply.aiter_bytes():
                        first = time.monotonic() - start if first is None else first
                    self.first_s.append(first or 0.0)
            if reply.status_code == 429:
                await asyncio.sleep(0.25)


@pytest.mark.slow
def test_ten_times_too_many_do_not_slow_those_that_are_let_in(server: Server) -> None:
    """With a short queue, as docs/OPERATING.md says."""
    queue = server.app.state.served.queue
    running, waiting = queue._max_running, queue._max_waiting
    queue._max_running, queue._max_waiting = 8, 1
    try:
        full, over = Load(server.url), Load(server.url)
        asyncio.run(full.run(8, 20))
        asyncio.run(over.run(80, OVERLOAD_S))
        start = time.monotonic()
        asyncio.run(until(lambda: unfinished(server) == 0, 10))
        again = Load(server.url)
        asyncio.run(again.run(8, 5))
    finally:
        queue._max_running, queue._max_waiting = running, waiting
    assert time.monotonic() - start < 15 + 5
    ratio = statistics.median(over.first_s) / statistics.median(full.first_s)
    assert over.num_refused > len(over.first_s)
    assert ratio < 1.5, ratio
    assert again.num_refused == 0
    assert statistics.median(again.first_s) < 1.5 * statistics.median(full.first_s)
