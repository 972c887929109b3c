"""Reads rows out of files, each with its place, so that a mistake can be named. Knows no meaning of fields."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from meet_training.errors import TrainingError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file: its fields, and where it stands (line of JSON Lines, item of a JSON list; from 1)."""

    file: Path
    number: int
    fields: dict[str, Any]

    def mistake(self, field: str, message: str) -> TrainingError:
        """The error for a field of this row: file, line, field, what is wrong."""
        return TrainingError(f"{self.file}:{self.number}: field {field!r} {message}")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON or JSON Lines file, gzipped or not. Blank lines are passed over.

    Raises TrainingError where the file cannot be read or a line is no JSON object.
    """
    if not path.name.endswith(SUFFIXES):
        raise TrainingError(f"{path}: data files end in {', '.join(SUFFIXES)}")
    try:
        with _open_text(path) as file:
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                yield from _json_lines(path, file)
            else:
                yield from _json_list(path, file)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"{path} cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _open_text(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(path: Path, file: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _row(path, number, _parse(path, number, line))


def _json_list(path: Path, file: IO[str]) -> Iterator[Row]:
    content = _parse(path, 1, file.read())
    if not isinstance(content, list):
        raise TrainingError(f"{path}: expected a list of objects, found {type(content).__name__}")
    for number, item in enumerate(content, 1):
        yield _row(path, number, item)


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TrainingError(f"{path}:{number}: not JSON: {error}") from None


def _row(path: Path, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise TrainingError(f"{path}:{number}: expected an object, found {type(item).__name__}")
    return Row(path, number, item)
