"""Opening, checking and writing bundles. The only code that writes `meet.json`.

Writing is all or nothing: files go into a temporary folder beside the target, the manifest is written
last, everything is synced, and one rename makes it the bundle.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meet_bundle.digests import folder_entries, listing_digest
from meet_bundle.errors import BundleAltered, BundleError
from meet_bundle.leftovers import PARTIAL, REPLACED, held, prefix
from meet_bundle.manifest import FORMAT_VERSION, MANIFEST_NAME, Calibration, Manifest, canonical, own_digest


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest.model_path

    def control_path(self, name: str) -> Path:
        """Folder of the control of a preference. Raises KeyError."""
        return self.path / self.manifest.preference(name).path


def open_bundle(path: Path | str, *, verify: bool = True) -> Bundle:
    """Reads a bundle's manifest and, unless told otherwise, checks every file against it.

    Raises BundleError where there is no bundle or one of another format version, and BundleAltered,
    naming the files, where content differs from the manifest.
    """
    path = Path(path)
    bundle = Bundle(path, _read_manifest(path))
    if verify:
        _verify_files(bundle)
    return bundle


@contextmanager
def writing_bundle(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it when the block ends well, and is removed when not.

    The block must call `seal` on the folder. Raises BundleError where `target` exists and `replace` is
    False, or where the block sealed nothing.
    """
    if target.exists() and not replace:
        raise BundleError(f"{target} exists; choose another output or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix(target.name, PARTIAL), dir=target.parent))
    try:
        folder.chmod(0o755)  # mkdtemp makes it private; a bundle is read by the server's user too
        with held(folder):
            yield folder
            if not (folder / MANIFEST_NAME).is_file():
                raise BundleError(f"{target}: nothing was sealed, so no bundle was written")
            _sync_tree(folder)
            _move_into_place(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Completes the manifest with the digests of what lies in `folder` and writes it there.

    The digests given in `manifest` are replaced. Returns the manifest as written.
    """
    roots = (manifest.model_path, *(p.path for p in manifest.preferences))
    entries = folder_entries(folder, roots)
    sealed = manifest.model_copy(
        update={
            "files": entries,
            "model_digest": listing_digest(entries, manifest.model_path),
            "preferences": tuple(
                p.model_copy(update={"digest": listing_digest(entries, p.path)}) for p in manifest.preferences
            ),
        }
    ).sealed()
    write_atomically(folder / MANIFEST_NAME, sealed.to_bytes())
    return sealed


def recalibrated(bundle: Bundle, calibrations: Mapping[str, Calibration]) -> Bundle:
    """The bundle with the calibration of these preferences in its manifest, which is written anew in one step.

    Only `meet.json` changes, with its digest. Raises KeyError where a preference is not in the bundle, and BundleError
    where another bundle or another calibration stands there by now, or where it cannot be written.
    """
    for name in calibrations:
        bundle.manifest.preference(name)
    preferences = tuple(
        p.model_copy(update={"calibration": calibrations.get(p.name, p.calibration)})
        for p in bundle.manifest.preferences
    )
    manifest = bundle.manifest.model_copy(update={"preferences": preferences}).sealed()
    try:
        with held(bundle.path):
            found = _read_manifest(bundle.path).digest
            if found != bundle.manifest.digest:
                raise BundleError(
                    f"{bundle.path} was replaced or calibrated meanwhile: its digest is {found[:12]}, and "
                    f"{bundle.manifest.digest[:12]} was measured; nothing was written"
                )
            write_atomically(bundle.path / MANIFEST_NAME, manifest.to_bytes())
    except OSError as error:
        raise BundleError(f"{bundle.path / MANIFEST_NAME} cannot be written: {error.strerror}") from None
    return Bundle(bundle.path, manifest)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise BundleError(f"{file}: a bundle holds plain files and folders, this is a link, a folder or a device")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    try:
        data = json.loads(content)
    except ValueError as error:
        raise BundleAltered(f"{file} is not JSON: {error}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(f"{file}: format_version is {version!r}; this release reads {FORMAT_VERSION}")
    if not _is_as_sealed(data, content):
        raise BundleAltered(f"{file} was altered: its content does not match its own digest")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise BundleError(f"{file}: {_first_mistake(error)}") from None


def _is_as_sealed(data: dict[str, Any], content: bytes) -> bool:
    try:
        return canonical(data) == content and own_digest(data) == data.get("digest")
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which nobody seals


def _verify_files(bundle: Bundle) -> None:
    """Raises BundleAltered naming what is missing, added or altered."""
    manifest = bundle.manifest
    roots = (manifest.model_path, *(p.path for p in manifest.preferences))
    found = folder_entries(bundle.path, roots)
    said = manifest.files
    wrong = [f"{name} is missing" for name in sorted(said.keys() - found.keys())]
    wrong += [f"{name} is not in the manifest" for name in sorted(found.keys() - said.keys())]
    wrong += [f"{name} was altered" for name in sorted(said.keys() & found.keys()) if said[name] != found[name]]
    if wrong:
        raise BundleAltered(f"{bundle.path}: " + "; ".join(wrong))
    digests = {manifest.model_path: manifest.model_digest} | {p.path: p.digest for p in manifest.preferences}
    for folder, digest in digests.items():
        if listing_digest(found, folder) != digest:
            raise BundleAltered(f"{bundle.path}: the digest of {folder} does not match its files")


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    if first["type"] == "extra_forbidden":
        return f"it has the field {where}, which this version does not know: a newer one may"
    return f"{where}: {first['msg']}"


def _move_into_place(folder: Path, target: Path) -> None:
    if target.exists():
        # Two renames: between them the old bundle stands under its aside name, complete, and `clean_up` finds it.
        aside = Path(tempfile.mkdtemp(prefix=prefix(target.name, REPLACED), dir=target.parent))
        with held(aside), held(target):  # not while its calibration is written
            target.rename(aside / target.name)
            folder.rename(target)
            shutil.rmtree(aside)
    else:
        folder.rename(target)
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Has the names of a folder on disk: those that appeared, moved or went."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
