"""`meet serve`: the MEET server for a bundle, in this process. Knows nothing of preferences or engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meet_cli.extras import require_engine


@click.command(
    short_help="Serve a bundle over HTTP.",
    epilog="Example: meet serve bundles/demo --port 8000 -- --max-model-len 4096",
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", help="Address to listen on; 127.0.0.1 by default, and any other needs keys.")
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port; 8000 by default.")
@click.option("--keys-file", type=click.Path(path_type=Path), help="File of keys; read anew when it changes.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings (docs/OPERATING.md).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="One setting; any number of times.")
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
def serve(
    bundle: Path, config: Path | None, overrides: tuple[str, ...], engine_args: tuple[str, ...], **given: Any
) -> None:
    """Serve the folder BUNDLE over HTTP until Ctrl-C.

    What follows `--` goes to the engine as it is, such as --max-model-len 4096.
    """
    if engine_args and not engine_args[0].startswith("-"):
        raise click.UsageError(f"unexpected argument {engine_args[0]!r}; engine arguments follow `--`")
    require_engine("meet serve")
    from meet_server.run import serve as serve_until_stopped
    from meet_server.settings import read_settings

    named = {name: value for name, value in given.items() if value is not None}
    if engine_args:
        named["engine_args"] = engine_args
    serve_until_stopped(read_settings(config, overrides, {"bundle": bundle, **named}))


if __name__ == "__main__":
    import sys

    from meet_cli.main import run

    sys.exit(run(serve, name="meet serve"))
