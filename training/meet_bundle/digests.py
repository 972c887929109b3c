"""SHA-256 of files and folders. Knows nothing of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meet_bundle.errors import BundleError
from meet_bundle.manifest import FileEntry


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_entries(root: Path, folders: tuple[str, ...]) -> dict[str, FileEntry]:
    """Digest and size of every file under `folders` of `root`, by its path relative to `root`, sorted.

    Raises BundleError for a link or a special file, the folders themselves and those that they lie in included: a
    bundle holds plain files alone, so that nothing outside it can change what it serves. `root` may be a link.
    """
    paths: list[Path] = []
    for folder in folders:
        for path in (*_leading_to(root, folder), *sorted((root / folder).rglob("*"))):
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise BundleError(f"{path}: a bundle holds plain files and folders, this is a link or a device")
            if path.is_file():
                paths.append(path)
    return entries_of(root, paths)


def _leading_to(root: Path, folder: str) -> list[Path]:
    """The folders below `root` on the way to `folder`, with it: `controls` and `controls/concise`."""
    parts = Path(folder).parts
    return [root.joinpath(*parts[: num + 1]) for num in range(len(parts))]


def entries_of(root: Path, paths: Sequence[Path]) -> dict[str, FileEntry]:
    """Digest and size of these files under `root`, by their path relative to it. Links count as what they lead to."""
    # hashlib lets go of the interpreter lock, so threads help where there are several shards.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(file_digest, paths)
        return {
            path.relative_to(root).as_posix(): FileEntry(sha256=digest, size=path.stat().st_size)
            for path, digest in zip(paths, digests, strict=True)
        }


def listing_digest(entries: dict[str, FileEntry], folder: str) -> str:
    """One digest for a folder: SHA-256 over `path size sha256` lines of its files, paths relative to it.

    `folder` is relative to what the entries' paths are; empty: it is that itself.
    """
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    lines = [
        f"{path.removeprefix(prefix)} {entry.size} {entry.sha256}\n"
        for path, entry in sorted(entries.items())
        if path.startswith(prefix)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
