"""vLLM's own app on a model folder, untouched, with the engine defaults of the MEET server.

    python -m meet_server.plain MODEL_DIR --name NAME [--port N] [--host H] [-- engine arguments]

What benchmarks, data generation and the evaluation of the plain base ask. No bundle and no controls.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from meet_bundle import MeetError
from meet_server.engine import start
from meet_server.lifecycle import Lifecycle
from meet_server.run import bound_socket, run, to_stdout
from meet_server.settings import PlainSettings


def create_plain_app(settings: PlainSettings) -> FastAPI:
    """The plain server. Its lifespan starts the engine and sets what `run` reads of `state`."""

    @asynccontextmanager
    async def lifespan(outer: FastAPI) -> AsyncIterator[None]:
        start.prepare_environment()
        args = start.plain_arguments(settings.model, settings.name, settings.engine_args)
        with start.running_engine(args, worker_start=settings.worker_start) as engine:
            inner = await start.vllm_app(engine, args)
            async with inner.router.lifespan_context(inner):
                outer.state.engine = engine
                outer.state.example = {}
                outer.state.needs_key = bool(start.api_keys(args))
                outer.mount("/", inner)
                yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.lifecycle = Lifecycle()
    return app


def serve_plain(settings: PlainSettings) -> None:
    """As `meet_server.run.serve`, for the plain server."""
    start.prepare_environment()
    with bound_socket(settings.host, settings.port) as sock:
        run(create_plain_app(settings), sock, settings, to_stdout)


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns its exit status."""
    ours, _, engine_args = _split(arguments)
    parser = argparse.ArgumentParser(prog="python -m meet_server.plain", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--name", required=True, help="what clients call the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(ours)
    try:
        serve_plain(PlainSettings(**vars(options), engine_args=tuple(engine_args)))
    except MeetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What stands before, at and after the first `--`."""
    listed = list(arguments)
    at = listed.index("--") if "--" in listed else len(listed)
    return listed[:at], listed[at : at + 1], listed[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
