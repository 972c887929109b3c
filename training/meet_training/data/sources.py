"""Reads rows out of files, each with its place, so that a mistake can be named. Knows no meaning of fields.

Rows come one at a time: no more of a file is held than the row at hand (of Parquet a batch, of a JSON list all).
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from meet_training.errors import TrainingError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".csv.gz", ".parquet")
PARQUET_BATCH = 256
"""Rows of a Parquet file that are held at once."""
TOLD_EVERY = 1000
"""Rows between two calls of `OnRead`."""
MAX_CELL = 2**24
"""Characters of one CSV cell; the module's own limit of 128 Ki is less than a long conversation."""

T = TypeVar("T")

OnRead = Callable[[Path, int, int], None]
"""The file, how much of it was read, and how much it holds: bytes, or rows of a Parquet file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its fields, and where it stands (line of a text file, item of a JSON list, row; from 1)."""

    file: str
    number: int
    fields: dict[str, Any]
    is_filled: bool = False  # of a table, where every object has the keys of all objects of its column

    def as_written(self) -> Row:
        """The row without the nulls that a table puts into the objects of lists and of other objects, for keys that
        they lack: in tools and their arguments they would be rendered. A field that is null itself stays so."""
        return replace(self, fields={name: _unfilled(value) for name, value in self.fields.items()})

    def mistake(self, field: str, message: str) -> RowError:
        """The error for a field of this row: file, line, field, what is wrong."""
        return RowError(f"{self.file}:{self.number}: field {field!r} {message}")


class RowError(TrainingError):
    """A row that does not have the form that it should have."""


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files that paths and patterns name, those of a pattern in order of name. Raises TrainingError."""
    files: list[Path] = []
    for path in paths:
        if path.exists() or not glob.has_magic(str(path)):
            files.append(path)
            continue
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not found:
            raise TrainingError(f"{path}: no file has such a name")
        files += found
    return files


@contextmanager
def reading(items: Iterable[T]) -> Iterator[Iterable[T]]:
    """For a loop over what is read from files: closes them however the loop ends, an error included."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


def read_rows(path: Path, on_read: OnRead | None = None) -> Iterator[Row]:
    """The rows of a JSON, JSON Lines, CSV or Parquet file, gzipped or not. Blank lines are passed over.

    `on_read` hears every now and then how far it is, of a short file nothing. Raises TrainingError where the
    file cannot be read or a line is no row.
    """
    if not path.name.endswith(SUFFIXES):
        raise TrainingError(f"{path}: data files end in {', '.join(SUFFIXES)}")
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        if kind == ".parquet":
            yield from _parquet(path, on_read)
            return
        with _open_text(path) as (text, raw):
            size = path.stat().st_size
            readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}
            count = 0
            for count, row in enumerate(readers[kind](path, text), 1):
                if on_read and count % TOLD_EVERY == 0:
                    on_read(path, raw.tell(), size)
                yield row
            if on_read and count >= TOLD_EVERY:
                on_read(path, size, size)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"{path} cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


@contextmanager
def _open_text(path: Path) -> Iterator[tuple[IO[str], IO[bytes]]]:
    """The file's text, and the file below it, whose position says how much was read."""
    with path.open("rb") as raw:
        inner = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        # Without universal newlines: in CSV a carriage return may stand inside a cell. A mark at the start of the file,
        # as spreadsheets write, is no part of its first name.
        with io.TextIOWrapper(inner, encoding="utf-8-sig", newline="" if ".csv" in path.suffixes else None) as text:
            yield text, raw


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


def _csv(path: Path, file: IO[str]) -> Iterator[Row]:
    """Rows of a CSV file with a header line; the number of a row is that of its last line."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise TrainingError(f"{path}:1: a column name occurs twice in the header {', '.join(header)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise TrainingError(
                    f"{path}:{reader.line_num}: expected {len(header)} cells, as the header has, found {len(cells)}"
                )
            yield Row(str(path), reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise TrainingError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _parquet(path: Path, on_read: OnRead | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            size, number = file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, fields, is_filled=True)
                if on_read and size >= TOLD_EVERY:
                    on_read(path, number, size)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise TrainingError(f"{path} cannot be read as Parquet: {reason}") from None


def _unfilled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unfilled(part) for key, part in value.items() if part is not None}
    return [_unfilled(part) for part in value] if isinstance(value, list) else value


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TrainingError(f"{path}:{number}: not JSON: {error}") from None


def _row(path: Path, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise TrainingError(f"{path}:{number}: expected an object, found {type(item).__name__}")
    return Row(str(path), number, item)
