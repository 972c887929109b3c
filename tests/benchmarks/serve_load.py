"""Sends the requests that `bench_serve.py` measures, from a process of its own: this file, run as a script."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serve_rows import Row, Side

WORDS = ("rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist")


@dataclass(frozen=True)
class Measured:
    """One measurement: tokens per second (or milliseconds to the first), and CPU milliseconds per request of this
    process, the API's."""

    value: float
    cpu_ms: float


class Load:
    """The process that sends requests: one JSON line each way per measurement."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._sent = 0

    def run(self, row: Row, side: Side, num_requests: int, num_tokens: int | None = None) -> Measured:
        """Sends that many requests, so many at once, and waits for their replies, of the row's number of tokens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "url": side.url,
            "body": {**side.fields, "max_tokens": num_tokens or row.num_tokens, "temperature": 0, "ignore_eos": True},
            "each": side.each,
            "prompt": row.prompt,
            "prompt_tokens": row.prompt_tokens,
            "concurrent": row.concurrent,
            "numbers": [self._sent, self._sent + num_requests],
        }
        self._sent += num_requests
        before = time.process_time()
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        cpu = time.process_time() - before
        return Measured(answer["value"], 1000 * cpu / num_requests)


@contextmanager
def load_process() -> Iterator[Load]:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Load(process)
    finally:
        process.communicate(timeout=30)


async def load_loop() -> None:
    """The load process: reads orders from standard input until it ends."""
    import httpx

    # A connection that the other side's turn leaves idle for as long as servers keep one might be closed as it is used.
    limits = httpx.Limits(max_connections=64, keepalive_expiry=2)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        while order_line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(order_line)
            numbers = iter(range(*order["numbers"]))
            value = await (first_token_ms if order["prompt_tokens"] else tokens_per_s)(client, order, numbers)
            sys.stdout.write(json.dumps({"value": value}) + "\n")
            sys.stdout.flush()


async def tokens_per_s(client: Any, order: dict[str, Any], numbers: Iterator[int]) -> float:
    start = time.perf_counter()
    counts = await asyncio.gather(*(send(client, order, numbers) for _ in range(order["concurrent"])))
    return sum(counts) / (time.perf_counter() - start)


async def send(client: Any, order: dict[str, Any], numbers: Iterator[int]) -> int:
    """One of the concurrent senders. Returns how many tokens it got."""
    total = 0
    for number in numbers:
        content = order["prompt"].format(word=WORDS[number % len(WORDS)], number=number)
        each = order["each"][number % len(order["each"])]
        body = {**order["body"], **each, "messages": [{"role": "user", "content": content}]}
        reply = await client.post(f"{order['url']}/v1/chat/completions", json=body)
        reply.raise_for_status()
        total += reply.json()["usage"]["completion_tokens"]
    return total


async def first_token_ms(client: Any, order: dict[str, Any], numbers: Iterator[int]) -> float:
    """Median of the time until every choice of a request has its first token; one request after the other."""
    times = []
    num_choices = len(order["body"].get("preferences", [None]))
    for number in numbers:
        prompt = random.Random(number).choices(range(100, 40_000), k=order["prompt_tokens"])
        body = {**order["body"], "prompt": prompt, "stream": True}
        waiting = set(range(num_choices))
        start = time.perf_counter()
        async with client.stream("POST", f"{order['url']}/v1/completions", json=body) as reply:
            reply.raise_for_status()
            async for event in reply.aiter_lines():
                if waiting and event.startswith("data: {"):
                    waiting -= {choice["index"] for choice in json.loads(event[6:])["choices"]}
                    if not waiting:
                        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    asyncio.run(load_loop())
