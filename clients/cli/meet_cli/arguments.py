"""A command line that sets fields of a configuration: one thing to work on, and any number of `--a.b=c`."""

from __future__ import annotations

from collections.abc import Sequence

import click


def split_arguments(arguments: Sequence[str], *, what: str) -> tuple[str, list[str]]:
    """The one thing that is named, and the overrides as `a.b=c`. Raises click.UsageError."""
    named = [argument for argument in arguments if not argument.startswith("-")]
    options = [argument for argument in arguments if argument.startswith("-")]
    for option in options:
        if not option.startswith("--") or "=" not in option:
            raise click.UsageError(f"no such option {option!r}; a field of the configuration is set as --a.b=c")
    if len(named) != 1:
        found = ", ".join(named) or "none"
        raise click.UsageError(f"expected one {what}, found {found}; overrides are written --a.b=c")
    return named[0], [option.removeprefix("--") for option in options]
