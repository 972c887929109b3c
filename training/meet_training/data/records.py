"""Records by key in a JSON Lines file, so that a run that was interrupted goes on. Knows nothing of what they are.

Several processes may add to one file and see what the others have added.
"""

from __future__ import annotations

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

from meet_training.errors import TrainingError

T = TypeVar("T")


class RecordFile(ABC, Generic[T]):
    """Records by key, one line each, in the file as soon as they are added."""

    what: ClassVar[str]
    """What a record is, for messages."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. Raises TrainingError where a line is no record."""
        self.path = path
        self._records: dict[str, T] = {}
        self._num_bytes, self._num_lines = 0, 0  # of the file, read so far
        self.refresh()

    @abstractmethod
    def read(self, fields: dict[str, Any]) -> T:
        """A record from a line's fields. Raises KeyError, TypeError or ValueError where they are none of it."""

    @abstractmethod
    def write(self, record: T) -> Mapping[str, Any]:
        """The fields of a line for a record."""

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> T:
        return self._records[key]

    def get(self, key: str) -> T | None:
        """The record that is kept under a key."""
        return self._records.get(key)

    def refresh(self) -> None:
        """Reads what other processes have added since. Raises TrainingError where a line is no record."""
        try:
            if not self.path.exists() or self.path.stat().st_size == self._num_bytes:
                return
            with self._locked("rb", fcntl.LOCK_SH) as file:
                self._read_on(file)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be read: {error.strerror}") from None

    def add(self, key: str, record: T, **notes: Any) -> None:
        """Keeps a record, in memory and in the file; `notes` go into its line for people to read.

        A last line that has no end was cut off when its run was killed: it is dropped, so that this one is not glued
        to it. Raises TrainingError where it cannot be written.
        """
        line = json.dumps({"key": key, **notes, **self.write(record)}, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked("a+b", fcntl.LOCK_EX) as file:
                self._read_on(file)
                file.truncate(self._num_bytes)
                file.write(line)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror}") from None
        self._num_bytes, self._num_lines = self._num_bytes + len(line), self._num_lines + 1
        self._records[key] = record

    @contextmanager
    def _locked(self, mode: str, lock: int) -> Iterator[IO[bytes]]:
        with self.path.open(mode) as file:
            fcntl.flock(file, lock)
            yield file

    def _read_on(self, file: IO[bytes]) -> None:
        """Takes the whole lines that were not read yet. One without an end is nobody's: who adds one holds a lock."""
        if file.seek(0, os.SEEK_END) < self._num_bytes:  # somebody began it anew
            self._num_bytes, self._num_lines = 0, 0
        file.seek(self._num_bytes)
        content = file.read()
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                fields = json.loads(line)
                key = str(fields.pop("key"))
                self._records[key] = self.read(fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise TrainingError(
                    f"{self.path}:{self._num_lines + 1}: not a kept {self.what}; "
                    "remove the line or the file to ask anew"
                ) from None
            self._num_bytes, self._num_lines = self._num_bytes + len(line), self._num_lines + 1
