"""Clients that leave, and many more than there is room for: nothing is left running, those let in are not slowed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import many_clients
import psutil
import pytest
from running_server import Server
from test_batching import until

from meet_server.settings import Settings

OVERLOAD_S = float(os.environ.get("MEET_OVERLOAD_S", "300"))


def unfinished(server: Server) -> int:
    queue = server.app.state.served.queue
    return int(server.engine.get_num_unfinished_requests()) + queue.num_running + queue.num_waiting


def memory() -> int:
    """Bytes that this process, which holds the server, and the engine's own hold."""
    here = psutil.Process()
    return sum(each.memory_info().rss for each in (here, *here.children(recursive=True)))


def leave(server: Server, num: int) -> None:
    many_clients.leave(server.url, num)
    asyncio.run(until(lambda: unfinished(server) == 0, 60))


def still_answers(server: Server) -> None:
    reply = httpx.post(f"{server.url}/v1/completions", json={"prompt": "rain", "max_tokens": 2}, timeout=60)
    assert reply.status_code == 200


def test_clients_that_leave_at_random_moments_leave_nothing_behind(server: Server) -> None:
    leave(server, 100)
    still_answers(server)


@pytest.fixture
def bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose oneDNN keeps 32 products. By default it keeps one for each size of batch, up to 1024, and over
    many thousand requests that would be what is measured."""
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    server = Server(Settings(bundle=bundle, engine_args=("--kv-cache-memory-bytes=67108864",), worker_start="spawn"))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_over_10_000_that_leave(bounded: Server) -> None:
    leave(bounded, 4000)  # touches the pages of the cache
    before = memory()
    leave(bounded, 10_000)
    grown = (memory() - before) / 2**20
    print(f"10,000 clients left; memory grew by {grown:.1f} MiB of {before / 2**20:.0f}")  # noqa: T201 - `pytest -s`
    assert grown < 32
    still_answers(bounded)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_waiting", [8, 0])
def test_ten_times_too_many_do_not_slow_those_that_are_let_in(server: Server, num_waiting: int) -> None:
    """At capacity every place to run and to wait is taken, and nobody is refused."""
    queue = server.app.state.served.queue
    before = queue._max_running, queue._max_waiting
    queue._max_running, queue._max_waiting = 8, num_waiting
    capacity = 8 + num_waiting
    try:
        many_clients.clients(server.url, capacity, 5)
        full = many_clients.clients(server.url, capacity, 20)
        over = many_clients.clients(server.url, 10 * capacity, OVERLOAD_S)
        ended = time.monotonic()
        asyncio.run(until(lambda: unfinished(server) == 0, 10))
        recovered_s = time.monotonic() - ended
        again = many_clients.clients(server.url, capacity, 10)
    finally:
        queue._max_running, queue._max_waiting = before
    ratio, after = over.median_s / full.median_s, again.median_s / full.median_s
    print(  # noqa: T201 - `pytest -s`
        f"{10 * capacity} clients for {capacity} places: {len(over.first_s)} answered, {over.num_refused} refused; "
        f"time to first token {ratio:.2f} of that at capacity, {after:.2f} afterwards; empty after {recovered_s:.2f} s"
    )
    assert (full.num_refused, again.num_refused) == (0, 0)
    assert over.num_refused > len(over.first_s)
    assert ratio < 1.5
    assert after < 1.5
