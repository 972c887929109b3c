"""Where figures go: to stdout for people, and with `--json FILE` to a file, written whole or not at all, or a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meet_cli.errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160
"""Columns of a table where stdout is no terminal."""

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(command: Function) -> Function:
    """Adds `--json FILE` to a command, as `json_file: Path | None`."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_writable,
        metavar="FILE",
        help="Write the figures to FILE as JSON too.",
    )(command)


def write_figures(file: Path | None, figures: Any) -> None:
    """Writes `figures` to `file`, where one was asked for. Raises CommandError where it cannot be written."""
    if file is None:
        return
    from meet_bundle.output import write_output

    content = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    try:
        write_output(file, content.encode())
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None


def figures_console() -> Console:
    """Stdout, as wide as the terminal, or wide enough for a table where it is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _writable(_: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    # Checked first, so that an hour's work does not end with a mistyped path.
    if file is None:
        return None
    from meet_bundle.output import refusal

    if (reason := refusal(file)) is not None:
        raise click.BadParameter(reason, param=parameter)
    return file
