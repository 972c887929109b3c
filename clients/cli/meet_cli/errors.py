"""Mistakes that the command line finds by itself; what others find are `MeetError`s.

Based on click's own exception, so that `meet --help` need not import the bundle format for a base class.
"""

from __future__ import annotations

import click


class CommandError(click.ClickException):
    """A mistake that the user can mend; printed on one line, and the command exits 2.

    Notes that were added with `add_note`, such as the end of a log, are printed before that line.
    """

    exit_code = 2


def one_line(message: object) -> str:
    """A message with its line breaks and runs of white space made single spaces."""
    return " ".join(str(message).split())
