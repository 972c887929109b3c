"""Controls that can be added to the tiny bundle: packed as a trainer would have them packed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from meet_bundle import Bundle, Preference
from meet_bundle.digests import listing_digest
from meet_bundle.manifest import FileEntry
from meet_server.registry.record import RECORD, ControlRecord, Files, files_of


def digest_of(files: Files) -> str:
    entries = {
        f"x/{name}": FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in files.items()
    }
    return listing_digest(entries, "x")


def sealed(preference: Preference, files: Files, model_digest: str) -> Files:
    """The files with a record that says so."""
    preference = preference.model_copy(update={"digest": digest_of(files)})
    record = ControlRecord(model_digest=model_digest, preference=preference)
    return {**files, RECORD: record.model_dump_json().encode()}


def control_files(bundle: Bundle, name: str) -> Files:
    return {file: content for file, content in files_of(bundle, name).items() if file != RECORD}


def renamed(bundle: Bundle, source: str, name: str, **fields: object) -> Files:
    """A control of the bundle under another name."""
    update = {"name": name, "aliases": (), **fields}
    preference = bundle.manifest.preference(source).model_copy(update=update)
    return sealed(preference, control_files(bundle, source), bundle.manifest.model_digest)


def new_control(bundle: Bundle, name: str, seed: int) -> Files:
    """A control of its own, with the A that all share and the probe that transformers and PEFT make of it."""
    from tiny_bundle import make_preference, make_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(bundle.model_path, folder / "model")
        preference = make_preference(folder, name, make_tokenizer(), seed=seed)
        files = {file.name: file.read_bytes() for file in (folder / "controls" / name).iterdir()}
    return sealed(preference.model_copy(update={"opposite": None}), files, bundle.manifest.model_digest)
