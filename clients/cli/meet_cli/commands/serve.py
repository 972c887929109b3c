"""`meet serve`: the MEET server for a bundle, in this process. Knows nothing of preferences or engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meet_cli.extras import require, require_engine


@click.command(
    short_help="Serve a bundle over HTTP.",
    epilog="Example: meet serve bundles/demo --port 8000 -- --max-model-len 4096, "
    "or meet serve bundles/demo --ray --replicas 2",
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", help="Address to listen on; 127.0.0.1 by default, and any other needs keys.")
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port; 8000 by default.")
@click.option("--keys-file", type=click.Path(path_type=Path), help="File of keys; read anew when it changes.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings (docs/OPERATING.md).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="One setting; any number of times.")
@click.option("--ray", "on_ray", is_flag=True, help="Serve it from several replicas by Ray Serve (docs/RAY.md).")
@click.option("--replicas", type=click.IntRange(min=1), help="How many replicas, with --ray; 1 by default.")
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE_ARGUMENTS]")
def serve(
    bundle: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    on_ray: bool,
    replicas: int | None,
    engine_args: tuple[str, ...],
    **given: Any,
) -> None:
    """Serve the folder BUNDLE over HTTP until Ctrl-C.

    What follows `--` goes to the engine as it is, such as --max-model-len 4096.
    """
    if engine_args and not engine_args[0].startswith("-"):
        raise click.UsageError(f"unexpected argument {engine_args[0]!r}; engine arguments follow `--`")
    if replicas is not None:
        if not on_ray:
            raise click.UsageError("--replicas goes with --ray")
        overrides = (*overrides, f"ray.replicas={replicas}")
    require_engine("meet serve")
    from meet_server.settings import read_settings

    named = {name: value for name, value in given.items() if value is not None}
    if engine_args:
        named["engine_args"] = engine_args
    settings = read_settings(config, overrides, {"bundle": bundle, **named})
    if on_ray:
        require("ray", "meet serve --ray")
        from meet_server.ray_serve.application import serve_until_stopped

        serve_until_stopped(settings)
    else:
        from meet_server.run import serve as serve_here

        serve_here(settings)


if __name__ == "__main__":
    import sys

    from meet_cli.main import run

    sys.exit(run(serve, name="meet serve"))
