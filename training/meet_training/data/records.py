"""Records by key in a JSON Lines file, so that a run that was interrupted goes on. Knows nothing of what they are."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from meet_training.errors import TrainingError

T = TypeVar("T")


class RecordFile(ABC, Generic[T]):
    """Records by key, one line each, in the file as soon as they are added."""

    what: ClassVar[str]
    """What a record is, for messages."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. Raises TrainingError where a line is no record.

        A last line that has no end was cut off when its run was killed: it is dropped, from the file too, so
        that what comes next is not glued to it.
        """
        self.path = path
        self._records = dict(self._read(_whole_lines(path)))

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

    def add(self, key: str, record: T, **notes: Any) -> None:
        """Keeps a record, in memory and in the file; `notes` go into its line for people to read.

        Raises TrainingError where it cannot be written.
        """
        line = json.dumps({"key": key, **notes, **self.write(record)}, ensure_ascii=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror}") from None
        self._records[key] = record

    def _read(self, lines: Iterable[bytes]) -> Iterable[tuple[str, T]]:
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                key = str(fields.pop("key"))
                yield key, self.read(fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise TrainingError(
                    f"{self.path}:{number}: not a kept {self.what}; remove the line or the file to ask anew"
                ) from None


def _whole_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    return whole.splitlines()
