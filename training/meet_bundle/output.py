"""Writing to a path that a user named, which may be a device, a pipe or a link: what is no plain file stays what it is.

Knows nothing of what is written. Files of the project's own naming go by `write_atomically`.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from meet_bundle.bundle import write_atomically

STDOUT, STDERR = 1, 2


def write_output(path: Path, content: bytes) -> None:
    """Writes into a device, a pipe or this process's own output, and atomically to all else.

    A link is kept, and what it leads to written. Raises OSError.
    """
    handle = _written_into(path)
    if handle is None:
        write_atomically(path.resolve(), content)
        return
    sys.stdout.flush()  # what was printed before stands before it
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def refusal(path: Path) -> str | None:
    """Why `write_output` could not write there, as far as that is seen without writing; None where it could."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        return f"{path}: {error.strerror}"
    if found is not None and (not stat.S_ISREG(found.st_mode) or _own_output(found) is not None):
        return None if os.access(path, os.W_OK) else f"{path} is not writable"
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"the folder {folder} is not writable"


def _written_into(path: Path) -> int | None:
    """A descriptor of what is written in place, the caller's to close; None for what a new file may replace."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if (own := _own_output(found)) is not None:
        return os.dup(own)  # opened anew, a redirected stdout would be written from its start, over what was printed
    return None if stat.S_ISREG(found.st_mode) else os.open(path, os.O_WRONLY)


def _own_output(found: os.stat_result) -> int | None:
    """Which of stdout and stderr this file is, as `/dev/stdout` is whatever that was redirected to."""
    for handle in (STDOUT, STDERR):
        try:
            own = os.fstat(handle)
        except OSError:  # closed
            continue
        if os.path.samestat(own, found):
            return handle
    return None
