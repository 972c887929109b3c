"""A control on its way from where it was trained to a server: a few files, packed in an archive or in a folder.

    preference.json           what the manifest says of it, its probe included, and the model that it was trained for
    adapter_config.json       and adapter_model.safetensors, of a LoRA control
    soft_prompt.safetensors   of a soft prompt

An archive is a zip file. It is read into memory and checked there; nothing of it is ever unpacked to where it says.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meet_bundle import Bundle, Preference
from meet_bundle.digests import listing_digest
from meet_bundle.manifest import FileEntry, Sha256
from meet_server.errors import RequestError

RECORD, CONTROL = "preference.json", "control"
ALLOWED = frozenset(
    {RECORD, "adapter_config.json", "adapter_model.safetensors", "soft_prompt.safetensors", "README.md"}
)
_MAX_TEXT_BYTES = 4 << 20  # of everything but tensors
# What an entry of an archive's directory begins with. `zipfile` reads all of them at once, each into ten times its
# bytes. Five are what there may be; among random weights one stands by chance in 4 GB.
_ENTRY, _MAX_ENTRIES = b"PK\x01\x02", 64
# What `zipfile` and the decompressors raise for what was damaged on its way, or made to be.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError, ValueError
)  # fmt: skip

Files = dict[str, bytes]
"""Contents by name, all of them in `ALLOWED`."""


class ControlRecord(BaseModel):
    """`preference.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_digest: Sha256 = Field(description="of the MEET model that the control was trained for")
    preference: Preference


def pack(files: Mapping[str, bytes]) -> bytes:
    """An archive of a control's files. Uncompressed: weights hardly shrink."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def files_of(bundle: Bundle, name: str) -> Files:
    """A preference of a bundle, ready to be packed. Raises KeyError where it has none of that name."""
    preference = bundle.manifest.preference(name)
    record = ControlRecord(model_digest=bundle.manifest.model_digest, preference=preference)
    files = {file.name: file.read_bytes() for file in sorted(bundle.control_path(name).iterdir())}
    return {**files, RECORD: (record.model_dump_json(indent=1) + "\n").encode()}


def files_in(folder: Path, max_bytes: int) -> Files:
    """The files of a folder. Raises RequestError `invalid_upload` for what has no place among them."""
    files: Files = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise _invalid(f"{path.name!r} is a link, a folder or a device; plain files are needed")
        _check_name(path.name, files)
        _check_size(path.name, path.stat().st_size, max_bytes - sum(map(len, files.values())))
        files[path.name] = path.read_bytes()
    return files


def unpack(data: bytes, max_bytes: int) -> Files:
    """The files of an archive, in memory. Raises RequestError `invalid_upload`.

    Sizes that the archive declares are checked first, and what is read is cut off at the same bound, so that neither
    a small archive of much nor a lie about it takes more memory than is allowed.
    """
    if data.count(_ENTRY) > _MAX_ENTRIES:
        raise _invalid("it lists more files than there may be")
    files: Files = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                _check_entry(entry, files)
                left = max_bytes - sum(map(len, files.values()))
                _check_size(entry.filename, entry.file_size, left)
                with archive.open(entry) as file:
                    files[entry.filename] = file.read(entry.file_size + 1)
                _check_size(entry.filename, len(files[entry.filename]), entry.file_size)
    except _UNREADABLE as error:
        raise _invalid(f"it is no zip archive that can be read: {str(error)[:200]}") from None
    return files


def read_record(files: Mapping[str, bytes], model_digest: str) -> Preference:
    """What the record says, for this model. Raises RequestError `invalid_upload`."""
    if RECORD not in files:
        raise _invalid(f"it has no {RECORD}; `meet bundle pack` writes archives that have")
    try:
        record = ControlRecord.model_validate_json(files[RECORD])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _invalid(f"{RECORD}: {'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:300]}") from None
    if record.model_digest != model_digest:
        raise _invalid(
            f"it was trained for the model {record.model_digest[:12]}; this is {model_digest[:12]}, and a control "
            "steers no model but its own"
        )
    check_whole(record.preference, {name: content for name, content in files.items() if name != RECORD})
    return record.preference


def check_whole(preference: Preference, files: Mapping[str, bytes]) -> None:
    """Raises RequestError `invalid_upload` where a control's files are not those that were trained."""
    entries = {
        f"{CONTROL}/{name}": FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in files.items()
    }
    if (found := listing_digest(entries, CONTROL)) != preference.digest:
        raise _invalid(f"its files have the digest {found[:12]}; {RECORD} says {preference.digest[:12]}")


def _check_entry(entry: zipfile.ZipInfo, files: Files) -> None:
    # ZipInfo cuts names at a null byte; what stood behind it is in orig_filename.
    _check_name(entry.orig_filename, files)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        raise _invalid(f"{entry.filename!r} is a link, a folder or a device; plain files are needed")
    if entry.flag_bits & 0x1:
        raise _invalid(f"{entry.filename!r} is encrypted")


def _check_name(name: str, files: Files) -> None:
    if name not in ALLOWED:
        raise _invalid(f"it holds {name[:100]!r}; {', '.join(sorted(ALLOWED))} are what it may hold, and no folders")
    if name in files:
        raise _invalid(f"it holds {name!r} twice")


def _check_size(name: str, size: int, left: int) -> None:
    allowed = left if name.endswith(".safetensors") else min(left, _MAX_TEXT_BYTES)
    if size > allowed:
        raise _invalid(f"{name!r} has {size} bytes; {max(0, allowed)} are allowed")


def _invalid(why: str) -> RequestError:
    return RequestError("invalid_upload", f"the control cannot come in: {why}")
