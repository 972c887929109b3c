"""Many clients in a process of their own: such as ask again as soon as they are answered, and such as leave."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

LEAVING = 24  # at a time
LEAVE_S = 0.15
PREFERENCES: list[Any] = [None, "concise", {"concise": 0.6, "detailed": 0.3}]

BODY = {"prompt": "rain", "max_tokens": 48, "ignore_eos": True, "stream": True, "preference": "concise"}


@dataclass
class Seen:
    """What the clients saw: seconds to the first bytes of each reply, and how many requests were refused."""

    first_s: list[float] = field(default_factory=list)
    num_refused: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.first_s)


def clients(url: str, num: int, seconds: float) -> Seen:
    """So many clients for so long. One that is refused comes again when Retry-After says."""
    seen: Seen = _elsewhere(seconds + 120, _clients, url, num, seconds)
    return seen


def leave(url: str, num: int) -> None:
    """Asks so many times, half of them for a stream, and is gone within LEAVE_S each time."""
    _elsewhere(60 + num * LEAVE_S, _leave, url, num)


def _elsewhere(timeout_s: float, run: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *args).result(timeout_s)


def _clients(url: str, num: int, seconds: float) -> Seen:
    return asyncio.run(_all(url, num, seconds))


def _leave(url: str, num: int) -> None:
    asyncio.run(_all_leave(url, num))


async def _all_leave(url: str, num: int) -> None:
    numbers = iter(range(num))
    async with httpx.AsyncClient(base_url=url, timeout=60) as http, asyncio.TaskGroup() as group:
        for seed in range(LEAVING):
            group.create_task(_leave_often(numbers, http, random.Random(seed)))


async def _leave_often(numbers: Iterator[int], http: httpx.AsyncClient, chance: random.Random) -> None:
    for number in numbers:
        body = {"prompt": f"rain {number}", "max_tokens": 300, "ignore_eos": True, "stream": bool(number % 2)}
        asked = asyncio.create_task(http.post("/v1/completions", json={**body, "preference": PREFERENCES[number % 3]}))
        await asyncio.sleep(chance.uniform(0, LEAVE_S))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def _all(url: str, num: int, seconds: float) -> Seen:
    seen, end = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=num, max_keepalive_connections=num)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http, asyncio.TaskGroup() as group:
        for _ in range(num):
            group.create_task(_ask_until(end, http, seen))
    return seen


async def _ask_until(end: float, http: httpx.AsyncClient, seen: Seen) -> None:
    while time.monotonic() < end:
        start = time.monotonic()
        async with http.stream("POST", "/v1/completions", json=BODY) as reply:
            if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
                seen.num_refused += 1
            else:
                reply.raise_for_status()
                chunks = reply.aiter_bytes()
                await anext(chunks)
                seen.first_s.append(time.monotonic() - start)
                async for _ in chunks:
                    pass
        if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
            await asyncio.sleep(int(reply.headers["retry-after"]))
