"""What a killed writer leaves beside its target, and who may take it away. Knows nothing of what is in it.

A writer holds a lock on its temporary folder, which the system gives up when the process ends, however it ends: so
what is locked is being written, and what is not was abandoned.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL, REPLACED = "partial", "replaced"


def prefix(name: str, kind: str) -> str:
    """How temporary folders for a target of that name begin."""
    return f".{name}.{kind}-"


@contextmanager
def held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Within the block nobody takes the folder for an abandoned one; it may be renamed or removed meanwhile.

    Where another process holds it: waits, or raises BlockingIOError.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def clean_up(target: Path) -> None:
    """Removes what killed writers of `target` left beside it, and puts back what one had moved away to replace it."""
    for aside in abandoned(target.parent, prefix(target.name, REPLACED)):
        old = aside / target.name
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(aside)
    for folder in abandoned(target.parent, prefix(target.name, PARTIAL)):
        shutil.rmtree(folder)


def abandoned(parent: Path, start: str) -> list[Path]:
    """Folders in `parent` whose name starts so and that nobody holds."""
    if not parent.is_dir():
        return []
    return [path for path in sorted(parent.iterdir()) if path.name.startswith(start) and not _is_held(path)]


def _is_held(folder: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False
    return True  # gone meanwhile, or no folder: none of ours
