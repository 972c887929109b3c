"""Clients in a process of their own, which ask a server again as soon as they were answered. Knows no MEET module."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import httpx

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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_run, url, num, seconds).result(timeout=seconds + 120)


def _run(url: str, num: int, seconds: float) -> Seen:
    return asyncio.run(_all(url, num, seconds))


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
