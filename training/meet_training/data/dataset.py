"""One data set as a stream of examples: opens its files or the hub's, recognises its form, counts as it goes.

Holds one row at a time. Levels by quantile are cut in a pass of their own, which holds the scores alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from meet_training.data.example import Example, Message
from meet_training.data.levels import Ends, ends_by_quantile, ends_by_score
from meet_training.data.parsing import Labelled, asked, labelled, score_of, uncontrolled
from meet_training.data.recognise import Columns, Recognised, columns_of, recognise
from meet_training.data.sources import OnRead, Row, RowError, expand, read_rows, reading
from meet_training.data_config import DataConfig

RowSource = Callable[[], Iterator[Row]]
"""Gives the rows of a data set from the first; may be asked twice."""


class DataSet:
    """The examples of one data set, and what was met while they were read."""

    def __init__(self, data: DataConfig, rows: RowSource) -> None:
        self.data = data
        self.recognised: Recognised | None = None
        self.num_rows = 0
        self.num_bad_rows = 0
        self.first_bad_row: str | None = None
        self._rows = rows

    def labelled(self) -> Iterator[Labelled]:
        """Every reply with its label; the example is None where the configuration wants none of it.

        Raises TrainingError where no form fits or a row lacks it, unless such rows are to be left out.
        """
        ends: Ends = {}
        with reading(self._kept_rows()) as rows:
            for row in rows:
                if self.recognised is None:
                    self.recognised = recognise(self.data, row)
                    ends = self._ends(self.recognised.columns)
                try:
                    yield from labelled(row, self.data, self.recognised, ends)
                except RowError as error:
                    self._leave_out(error)

    def uncontrolled(self) -> Iterator[Example]:
        """Every reply, whatever its label; of a pair the chosen one. Raises TrainingError."""
        with reading(self._kept_rows()) as rows:
            for row in rows:
                if self.recognised is None:
                    self.recognised = recognise(self.data, row, labelled=False)
                try:
                    yield uncontrolled(row, self.data, self.recognised)
                except RowError as error:
                    self._leave_out(error)

    def asked(self) -> Iterator[tuple[tuple[Message, ...], str | Message | None]]:
        """The conversation of every row, with its reply where it has one; no label is needed. Raises TrainingError."""
        columns: Columns | None = None
        with reading(self._kept_rows()) as rows:
            for row in rows:
                columns = columns or columns_of(self.data, row)
                try:
                    yield asked(row, columns)
                except RowError as error:
                    self._leave_out(error)

    def recognise(self) -> Recognised | None:
        """The form by the first row, or None where there is no row; whether the options suit it is not asked."""
        row = next(self._kept_rows(), None)
        self.num_rows = 0
        return None if row is None else recognise(self.data, row, labelled=False)

    def _kept_rows(self) -> Iterator[Row]:
        wanted = self.data.where.items()
        with reading(self._rows()) as rows:
            for row in rows:
                if all(_matches(row.fields.get(field), value) for field, value in wanted):
                    self.num_rows += 1
                    yield row.as_written() if row.is_filled else row

    def _leave_out(self, error: RowError) -> None:
        if self.data.bad_rows == "refuse":
            raise error
        self.num_bad_rows += 1
        self.first_bad_row = self.first_bad_row or str(error)

    def _ends(self, columns: Columns) -> Ends:
        levels = self.data.levels
        if levels is None:
            return {}
        if levels.by == "score":
            return ends_by_score(levels)
        scores = array("d")
        with reading(self._rows()) as rows:
            for row in rows:
                if all(_matches(row.fields.get(field), value) for field, value in self.data.where.items()):
                    try:
                        scores.append(score_of(row, levels, columns))
                    except RowError:
                        continue  # met again, and told, when its row is turned into examples
        return ends_by_quantile(levels, scores)


def open_data(data: DataConfig, on_read: OnRead | None = None) -> DataSet:
    """The data set that a configuration names. Raises TrainingError where a pattern names no file."""
    if data.hub is not None:
        from meet_training.data.hub import read_hub

        return DataSet(data, partial(read_hub, data.hub, data.split or "train", data.config))
    files = expand(data.paths)
    return DataSet(data, lambda: (row for file in files for row in read_rows(file, on_read)))


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)
