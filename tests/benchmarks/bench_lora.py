"""What LoRA controls and mixes of them cost: ratios of two servers, or of two kinds of requests, measured in turn.

    python tests/benchmarks/bench_lora.py [--rows NAME ...] [--model DIR] [--json FILE] [--quick]

Serves a real model (SmolLM2-135M unless `--model` names another) with random controls, which cost what trained ones
do. Every server is a process of its own. A row whose figure is on the wrong side of its bound makes the exit status 1.
To add a row: a function from a `World` to its results, and its name in `ROWS`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_serve import LEFT_ALONE, quartiles, write_report
from lora_bundle import make_lora_bundle, smollm2

WORDS = ("rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist")
NUM_TOKENS = 32

OURS = (
    "import sys; from pathlib import Path; from meet_server.run import serve;"
    "from meet_server.settings import Settings;"
    "serve(Settings(bundle=Path(sys.argv[1]), port=0, engine_args=tuple(sys.argv[2:])))"
)
PLAIN = (
    "import sys; from pathlib import Path; from meet_server.plain import serve_plain;"
    "from meet_server.settings import PlainSettings;"
    "serve_plain(PlainSettings(model=Path(sys.argv[1]), name='bench', port=0, engine_args=tuple(sys.argv[2:])))"
)

LABELS = ("c0", "c1", "c2", "c3")

Preferences = Sequence[Any]
"""Values of `preference`, of which request i has the i-th, and so on from the first."""


@dataclass(frozen=True)
class Side:
    """One of the two things a row compares."""

    url: str
    preferences: Preferences = ()


@dataclass(frozen=True)
class Result:
    """A figure, its bound, and what neighbouring measurements make of it, each pair by itself.

    Ratios of rates are the median of their pairs: a machine's own speed changes by half within a minute, which the two
    of a pair share and two medians do not.
    """

    name: str
    figure: float
    bound: float
    at_least: bool
    ours: float
    other: float
    unit: str
    pairs: list[float]

    @property
    def holds(self) -> bool:
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


class World:
    """What rows ask, and how much they measure. Servers are started when first asked for and shared by the rows."""

    def __init__(self, bundle: Callable[[int], Path], pairs: int, seconds: float, servers: ExitStack) -> None:
        self.bundle, self.pairs, self.seconds = bundle, pairs, seconds
        self._servers = servers
        self._urls: dict[str, str] = {}

    def url(self, kind: str) -> str:
        """Of `ours`, `stock` (ours with vLLM's own kernels), `eager` or `compiled` (vLLM's app without LoRA)."""
        if kind not in self._urls:
            folder = self.bundle(4)
            context = {
                "ours": lambda: server(OURS, folder),
                "stock": lambda: server(OURS, folder, "--max-loras=4", MEET_STOCK_LORA_KERNELS="1"),
                "eager": lambda: server(PLAIN, folder / "model"),
                "compiled": lambda: server(PLAIN, folder / "model", "--no-enforce-eager"),
            }[kind]
            self._urls[kind] = self._servers.enter_context(context())
        return self._urls[kind]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows; all by default")
    parser.add_argument("--model", type=Path, help="folder of the model; SmolLM2-135M by default")
    parser.add_argument("--keep", type=Path, help="folder for the bundles that are made; those there are used again")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--pairs", type=int, default=21, help="measurements of each side")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement: no bound is checked")
    options = parser.parse_args(arguments)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or smollm2()

        def bundle(num_controls: int) -> Path:
            folder = (options.keep or Path(scratch)) / f"bundle-{num_controls}"
            return folder if folder.exists() else make_lora_bundle(model, folder, num_controls)

        with ExitStack() as servers:
            pairs, seconds = (3, 1.0) if options.quick else (options.pairs, 1.5)
            world = World(bundle, pairs, seconds, servers)
            for name in options.rows:
                for result in ROWS[name](world):
                    print(line(result), flush=True)
                    results.append(result)
                    write_report(options.json, [asdict(each) | {"holds": each.holds} for each in results])
    return 0 if options.quick or all(result.holds for result in results) else 1


def idle(world: World) -> Iterator[Result]:
    """An engine that could apply adapters, and is not asked to, against one that could not."""
    ours, plain = Side(world.url("ours")), Side(world.url("eager"))
    for concurrent in (1, 32):
        yield rates(world, f"uncontrolled, LoRA on / off, {concurrent} at once", concurrent, 0.95, ours, plain)


def stock(world: World) -> Iterator[Result]:
    """Adapters by our products against vLLM's own kernels."""
    for num in (1, 4):
        ours, other = (Side(world.url(kind), LABELS[:num]) for kind in ("ours", "stock"))
        yield rates(world, f"LoRA, {num} of 4 controls, 32 at once / stock kernels", 32, 2.0, ours, other)


def eager(world: World) -> Iterator[Result]:
    """Adapters against an engine without any, eager as ours is."""
    return against(world, "eager")


def compiled(world: World) -> Iterator[Result]:
    """The same against a compiled one. The faster of the two counts, so that both bounds are to hold."""
    return against(world, "compiled")


def against(world: World, kind: str) -> Iterator[Result]:
    for num in (4, 1):
        name = f"LoRA, {num} of 4 controls, 32 at once / uncontrolled engine, {kind}"
        yield rates(world, name, 32, 0.75, Side(world.url("ours"), LABELS[:num]), Side(world.url(kind)))


def mixes(world: World) -> Iterator[Result]:
    """64 different mixes of four controls against one adapter."""
    different = [
        {"c0": 0.1 + (n % 4) / 4, "c1": (n // 4 % 4) / 4 - 0.4, "c2": n / 64, "c3": 1 - n / 128} for n in range(64)
    ]
    ours, other = Side(world.url("ours"), different), Side(world.url("ours"), LABELS[:1])
    yield rates(world, "64 different mixes / one adapter, 64 at once", 64, 0.9, ours, other)


def new_mix(world: World) -> Iterator[Result]:
    """Time to the first token of mixes that were never asked for, beyond that of a resident one; 95th percentiles.

    Beside it the same for a second resident mix, which shows what of the figure is the machine's unrest.
    """
    url = world.url("ours")
    times: dict[str, list[float]] = {"new": [], "resident": [], "another": []}
    for index in range(-10, 10 * world.pairs):
        parts = range(1 + index % 4)
        # With one strength more every four requests, and one control more each, none comes twice.
        new = {f"c{part}": round(0.3 + (index // 4 + 3) / 100 + part / 4, 2) for part in parts}
        asked = {
            "new": new,
            "resident": {f"c{part}": 0.25 for part in parts},
            "another": {f"c{part}": 0.2 for part in parts},
        }
        order = list(asked)[index % 3 :] + list(asked)[: index % 3]
        for kind in order:
            taken = first_token_ms(url, asked[kind])
            if index >= 0:
                times[kind].append(round(taken, 2))
    late = {kind: percentile(each, 0.95) for kind, each in times.items()}
    name = "first request of {}, extra time to first token over a resident one, p95"
    for kind, what in (("new", "a new mix"), ("another", "another resident mix")):
        extra = sorted(round(a - b, 2) for a, b in zip(times[kind], times["resident"], strict=True))
        figure = round(late[kind] - late["resident"], 2)
        yield Result(name.format(what), figure, 20, False, late[kind], late["resident"], "ms", extra)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def start_up(world: World) -> Iterator[Result]:
    """From the command to being ready, with eight controls and with none."""
    bundle = world.bundle(8)
    ours, other = [], []
    for index in range(3 if world.pairs > 3 else 1):
        for code, folder, times in ((OURS, bundle, ours), (PLAIN, bundle / "model", other))[:: 1 if index % 2 else -1]:
            start = time.perf_counter()
            with server(code, folder):
                times.append(time.perf_counter() - start)
    pairs = [round(a / b, 4) for a, b in zip(ours, other, strict=True)]
    seconds = [round(statistics.median(each), 2) for each in (ours, other)]
    yield Result(
        "start-up with 8 controls / without", round(seconds[0] / seconds[1], 4), 1.15, False, *seconds, "s", pairs
    )


ROWS: dict[str, Callable[[World], Iterator[Result]]] = {
    "idle": idle,
    "stock": stock,
    "eager": eager,
    "compiled": compiled,
    "mixes": mixes,
    "new-mix": new_mix,
    "start-up": start_up,
}


def rates(world: World, name: str, concurrent: int, bound: float, ours: Side, other: Side) -> Result:
    """Tokens per second of two sides in turn, the first of each pair in turn, after a round of each to warm up."""
    warm = [rate(side, concurrent, concurrent) for side in (ours, other, ours, other)]
    num_requests = concurrent * max(1, round(world.seconds * max(warm[2:]) / (concurrent * NUM_TOKENS)))
    measured: dict[bool, list[float]] = {True: [], False: []}
    for index in range(world.pairs):
        for is_ours in (True, False) if index % 2 else (False, True):
            measured[is_ours].append(rate(ours if is_ours else other, concurrent, num_requests))
    a, b = (statistics.median(measured[is_ours]) for is_ours in (True, False))
    pairs = [round(x / y, 4) for x, y in zip(measured[True], measured[False], strict=True)]
    return Result(name, statistics.median(pairs), bound, True, round(a, 1), round(b, 1), "tokens/s", pairs)


def line(result: Result) -> str:
    sign = ">=" if result.at_least else "<="
    return (
        f"{result.name}: {result.figure} ({result.ours} / {result.other} {result.unit}; quartiles "
        f"{', '.join(f'{each:.3f}' for each in quartiles(result.pairs))}), bound {sign} {result.bound}: "
        f"{'holds' if result.holds else 'BROKEN'}"
    )


def rate(side: Side, concurrent: int, num_requests: int) -> float:
    """Tokens per second of that many requests, so many at once."""
    return asyncio.run(_rate(side, concurrent, num_requests))


async def _rate(side: Side, concurrent: int, num_requests: int) -> float:
    import httpx

    numbers = iter(range(num_requests))

    async def sender(client: httpx.AsyncClient) -> int:
        total = 0
        for number in numbers:
            body = _body(f"What is {WORDS[number % len(WORDS)]}?", NUM_TOKENS)
            if side.preferences:
                body["preference"] = side.preferences[number % len(side.preferences)]
            reply = await client.post(f"{side.url}/v1/chat/completions", json=body)
            reply.raise_for_status()
            total += reply.json()["usage"]["completion_tokens"]
        return total

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=64)) as client:
        start = time.perf_counter()
        counts = await asyncio.gather(*(sender(client) for _ in range(concurrent)))
        return sum(counts) / (time.perf_counter() - start)


def first_token_ms(url: str, preference: Any) -> float:
    import httpx

    body = {**_body("What is rain?", 1), "preference": preference, "cache_salt": str(time.perf_counter_ns())}
    start = time.perf_counter()
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    return 1000 * (time.perf_counter() - start)


def _body(content: str, num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}


@contextmanager
def server(code: str, folder: Path, *engine_args: str, **environment: str) -> Iterator[str]:
    """A server in a process of its own, from its start to its end. Its address, once it is ready."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *engine_args],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=LEFT_ALONE | os.environ | environment,
    )
    try:
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith("ready: "):
                yield said.split()[1]
                return
        process.wait()
        log.seek(0)
        raise RuntimeError(f"the server of {folder} ended before it was ready: ...{log.read()[-2000:]}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        log.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
