"""Keeps the state of a registry and the contents of controls in a folder. Knows neither engine nor HTTP.

    state.json              all that was changed, written anew with each change and put in place by one rename
    contents/DIGEST/        a control and its record, named by content, never altered
    locks/DIGEST            held by whoever uses that content; a file, since NFS keeps locks of folders to one machine
    lock                    held by whoever writes

Durable before a function returns, and safe to share between processes: writers take turns by the lock, readers need
none. A process that is killed leaves the old state or the new one. Why no SQLite: docs/OPERATING.md.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from meet_bundle import Preference
from meet_bundle.bundle import sync_folder, write_atomically
from meet_server.errors import ServerError
from meet_server.registry.record import CONTROL, RECORD, ControlRecord, Files, check_whole
from meet_server.registry.state import FORMAT_VERSION, State

STATE, CONTENTS, LOCKS, LOCK = "state.json", "contents", "locks", "lock"
_REMEDY = "update its preference with the same control, which is written anew, or roll it back or remove it"
_LOGGER = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None
"""What differs whenever the state does."""


def beside(bundle: Path) -> Path:
    """Where the registry of a bundle is unless a setting says otherwise."""
    bundle = bundle.absolute()
    if bundle.name == "..":
        bundle = bundle.resolve()
    return bundle.with_name(f"{bundle.name}.registry")


class _Versioned(BaseModel):
    """A state of any version, whatever else is in it."""

    format_version: int = FORMAT_VERSION


@dataclass(slots=True)
class _Hold:
    """A content's lock, open and shared, and how often the content is held."""

    handle: int
    num: int = 1


class Store:
    """A registry's folder, which is made when something is first written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, _Hold] = {}  # contents that this process uses
        self._holding = threading.Lock()  # `keep` holds too, and runs in a thread
        self.written: Stamp = None
        """The stamp of the state that `update` put in place last, whatever others have committed since."""

    def read(self) -> State:
        """The state as it was last committed. Raises ServerError where it cannot be read."""
        file = self._folder / STATE
        try:
            raw = file.read_bytes()
            version = _Versioned.model_validate_json(raw).format_version
            if version != FORMAT_VERSION:
                raise ServerError(f"registry {file}: format_version is {version}; this reads {FORMAT_VERSION}")
            return State.model_validate_json(raw)
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise ServerError(f"registry {file} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise ServerError(f"registry {file} is damaged: {error.errors(include_url=False)[0]['msg']}") from None

    def stamp(self) -> Stamp:
        """Costs one look at the file system."""
        try:
            found = (self._folder / STATE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def update(self, change: Callable[[State], State]) -> State:
        """Commits what `change` makes of the state, which may raise, and returns it once it is on disk.

        Raises ServerError where it cannot be read or written.
        """
        with self._writing():
            state = change(self.read())
            write_atomically(self._folder / STATE, (state.model_dump_json(indent=1) + "\n").encode())
            self.written = self.stamp()
            try:
                self._tidy(state)
            except OSError as error:  # the change is on disk all the same; the next one tidies again
                _LOGGER.warning("registry %s keeps what nothing needs: %s", self._folder, error)
        return state

    def keep(self, files: Mapping[str, bytes]) -> str:
        """Writes a checked content, `preference.json` and the control's files, and returns its name.

        One that is there already is written anew where it is not whole. It is held, as by `hold`. Raises ServerError
        where it cannot be written.
        """
        name = hashlib.sha256(files[RECORD]).hexdigest()
        with self._writing():
            if not self._is_whole(name, files):
                _put(self.folder(name), files)
            self.hold(name)
        return name

    def folder(self, content: str) -> Path:
        return self._folder / CONTENTS / content

    def control(self, content: str) -> Path:
        """The folder of a content's control, as PEFT writes one."""
        return self.folder(content) / CONTROL

    def record(self, content: str) -> Preference:
        """The preference that a content is of. Raises ServerError where it is missing or was altered."""
        return self._record(content)[1].preference

    def files(self, content: str) -> Files:
        """The files of a content as they are now. Raises ServerError where one is missing or its record was altered."""
        raw, _ = self._record(content)
        control = self.control(content)
        try:
            return {RECORD: raw, **{file.name: file.read_bytes() for file in sorted(control.iterdir())}}
        except OSError as error:
            raise ServerError(f"registry content {control} cannot be read: {error.strerror}") from None

    def verify(self, content: str) -> None:
        """Raises ServerError where a file of a content is not what its record says."""
        files = self.files(content)
        del files[RECORD]
        check_whole(self.record(content), files)

    def hold(self, content: str) -> None:
        """Keeps a content where it is until it is released as often: an engine reads its files again when it likes.

        Raises ServerError where it is missing.
        """
        folder = self.folder(content)
        with self._holding:
            if (held := self._held.get(content)) is not None:
                held.num += 1
                return
            try:
                handle = _open_shared(self._folder / LOCKS / content)
            except OSError as error:
                raise ServerError(f"registry content {folder} cannot be held: {error.strerror}") from None
            if not folder.is_dir():
                os.close(handle)
                raise ServerError(f"registry content {folder} cannot be held: {os.strerror(errno.ENOENT)}")
            self._held[content] = _Hold(handle)

    def release(self, content: str) -> None:
        """Ends one `hold`. A content that nothing holds or names goes with the next change. Raises KeyError."""
        with self._holding:
            held = self._held[content]
            held.num -= 1
            if not held.num:
                os.close(self._held.pop(content).handle)

    def close(self) -> None:
        """Lets go of all contents."""
        while self._held:
            os.close(self._held.popitem()[1].handle)

    def _is_whole(self, content: str, files: Mapping[str, bytes]) -> bool:
        """Whether it lies there with these files: a disk damages some, and one killed in `_tidy` removes some."""
        try:
            return self.files(content) == files
        except ServerError:
            return False

    def _record(self, content: str) -> tuple[bytes, ControlRecord]:
        file = self.folder(content) / RECORD
        try:
            raw = file.read_bytes()
            record = ControlRecord.model_validate_json(raw)
        except OSError as error:
            raise ServerError(f"registry content {file} cannot be read: {error.strerror}; {_REMEDY}") from None
        except ValidationError:
            raise ServerError(f"registry content {file} is damaged; {_REMEDY}") from None
        if hashlib.sha256(raw).hexdigest() != content:
            raise ServerError(f"registry content {file} was altered; {_REMEDY}")
        return raw, record

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Takes the turn of who writes. Raises ServerError for whatever the file system does not do meanwhile."""
        try:
            _make(self._folder)
            handle = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
        except OSError as error:
            raise ServerError(f"registry {self._folder} cannot be written: {error.strerror}") from None

    def _tidy(self, state: State) -> None:
        """Removes contents that nothing names and no process holds, and what killed writers left."""
        contents, locks = self._folder / CONTENTS, self._folder / LOCKS
        names = {each.name for folder in (contents, locks) if folder.is_dir() for each in folder.iterdir()}
        for name in names - state.contents - self._held.keys():
            with _free(locks / name) as free:
                if free:
                    shutil.rmtree(contents / name, ignore_errors=True)
                    (locks / name).unlink()
        for left in self._folder.glob(f".{STATE}.*"):  # as `write_atomically` names what it writes
            left.unlink()


def _make(folder: Path) -> None:
    """Makes a folder and those that it lies in, and has their names on disk."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _put(target: Path, files: Mapping[str, bytes]) -> None:
    """Has a content lie there whole. Of what is not, nothing stays: a full disk would stay full."""
    target.parent.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        _write(partial, files)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.chmod(0o755)
    (folder / CONTROL).mkdir()
    for name, content in files.items():
        with (folder / name if name == RECORD else folder / CONTROL / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder / CONTROL)
    sync_folder(folder)


def _open_shared(lock: Path) -> int:
    """A handle with a shared lock on the file that lies there once it is had: `_tidy` may remove one meanwhile."""
    while True:
        handle = _opened(lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _lies_at(lock, handle):
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def _opened(lock: Path) -> int:
    lock.parent.mkdir(exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)


def _lies_at(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _free(lock: Path) -> Iterator[bool]:
    """Whether nobody holds it; then nobody does within the block."""
    handle = _opened(lock)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)
