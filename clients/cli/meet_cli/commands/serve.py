"""`meet serve`: the MEET server for a bundle, in this process. Knows nothing of preferences or engines."""

from __future__ import annotations

from pathlib import Path

import click

from meet_cli.extras import require_engine


@click.command(
    short_help="Serve a bundle over HTTP.",
    epilog="Example: meet serve bundles/demo --port 8000 -- --max-model-len 4096",
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="TCP port.")
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
def serve(bundle: Path, host: str, port: int, engine_args: tuple[str, ...]) -> None:
    """Serve the folder BUNDLE over HTTP until Ctrl-C.

    What follows `--` goes to the engine as it is, such as --max-model-len 4096.
    """
    if engine_args and not engine_args[0].startswith("-"):
        raise click.UsageError(f"unexpected argument {engine_args[0]!r}; engine arguments follow `--`")
    require_engine("meet serve")
    from meet_server.run import serve as serve_until_stopped
    from meet_server.settings import Settings

    serve_until_stopped(Settings(bundle=bundle, host=host, port=port, engine_args=engine_args))


if __name__ == "__main__":
    import sys

    from meet_cli.main import run

    sys.exit(run(serve, name="meet serve"))
