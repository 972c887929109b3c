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
    """A message with its line breaks and runs of white space made single spaces, and nothing that a terminal obeys."""
    return harmless(" ".join(str(message).split()))


def harmless(text: str) -> str:
    """A text of somebody else's for a terminal: of control characters only line breaks and tabs, others are spelled."""
    return text.translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"} | {13: ""}
