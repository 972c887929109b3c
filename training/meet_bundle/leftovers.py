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
def held(folder: Path) -> Iterator[None]:
    """Within the block nobody else holds the folder or takes it for an abandoned one; it may be moved or removed.

    Waits for who holds it. What is held is what is there then, if another has taken its place. Raises OSError.
    """
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, folder):
                yield
                return
        finally:
            os.close(handle)


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Makes a folder where there is none and holds it: True, or False where another process does and `wait` is not set.

    After the block it is removed if nothing is in it. Who holds it may remove it with all that is in it, too.
    """
    handle = _claim(folder, wait=wait)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        if _is_at(handle, folder):
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()
        os.close(handle)


def _claim(folder: Path, *, wait: bool) -> int | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # who held it has just removed it
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        if _is_at(handle, folder):
            return handle
        os.close(handle)  # of a folder that was removed; another may be there by now


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open folder is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


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
