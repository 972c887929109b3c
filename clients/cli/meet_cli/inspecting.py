"""What `meet data inspect` is told, put together, and what it found, shown. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meet_cli.errors import CommandError
from meet_cli.figures import figures_console
from meet_cli.progress import Tell, tell_step, telling

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from meet_training.data.inspection import Inspection, PreferenceFigures, Wanted
    from meet_training.data.measure import Measure
    from meet_training.data_config import DataConfig

CONFIG_SUFFIXES = (".yaml", ".yml")
MARKS = ("[[", "]]")
"""What stands round supervised text where there is no colour."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to inspect, and by which measure: data sets, what training would do with them, the base."""

    data: tuple[DataConfig, ...]
    wanted: Wanted
    base: str | None


def asked_of(source: str, overrides: Sequence[str], base: str | None, max_length: int | None) -> Asked:
    """What the command line asks for: the data of a configuration, or one file or data set of the hub.

    Raises CommandError and MeetError as reading a configuration does.
    """
    from meet_training.data.inspection import Wanted

    if source.endswith(CONFIG_SUFFIXES):
        from meet_training.config import load_config

        config = load_config(Path(source), overrides)
        opposites = {label: preference.opposite for label, preference in config.preferences.items()}
        wanted = Wanted(
            opposites,
            max_length or config.max_length,
            config.examples_per_preference,
            config.seed,
            pairs=config.objective.kind == "preference",
        )
        return Asked(config.data, wanted, base or config.base)
    return Asked((_data_of(source, overrides),), Wanted(max_length=max_length), base)


def inspect_with_progress(asked: Asked, test: Path | None) -> Inspection:
    """Inspects, telling progress on stderr. Raises MeetError as reading data does."""
    from meet_training.data.dataset import open_data
    from meet_training.data.inspection import inspect

    measure = _measure(asked.base)
    with telling() as tell:
        reading = _Reading(tell)
        data_sets = [open_data(data, reading.on_read) for data in asked.data]
        held_out = None
        if test is not None:
            like = asked.data[0].model_copy(update={"path": test, "hub": None, "form": "auto"})
            held_out = open_data(like, reading.on_read)
        return inspect(data_sets, measure, asked.wanted, test=held_out, on_example=reading.on_example)


def show(inspection: Inspection) -> None:
    """Prints what was found on stdout, supervised text in colour, or between marks where there is none."""
    console = figures_console()
    for line in _headings(inspection):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(inspection))
    for line in _remarks(inspection):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _show_example(console, inspection)


class _Reading:
    """How far reading is, in percent of the file at hand and in examples."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._num_examples = 0

    def on_example(self, num: int) -> None:
        self._num_examples = num

    def on_read(self, path: Path, done: int, size: int) -> None:
        self._tell(path.name, 100 * done // max(size, 1), 100, f"percent read, {self._num_examples} examples")


def _data_of(source: str, overrides: Sequence[str]) -> DataConfig:
    """A data set named on the command line, with the fields that are set there."""
    from pydantic import ValidationError

    from meet_training.config import apply_override, describe
    from meet_training.data.dataset import open_data
    from meet_training.data.sources import SUFFIXES
    from meet_training.data_config import DataConfig

    is_file = source.endswith(SUFFIXES) or Path(source).is_file()
    if not (is_file or "/" in source or Path(source).is_dir()):
        raise CommandError(
            f"{source}: expected a configuration (.yaml), a data file ({', '.join(SUFFIXES)}), or a data set of the "
            f"hub (OWNER/NAME, or its folder)"
        )
    content: dict[str, Any] = {"path" if is_file else "hub": source}
    for override in overrides:
        apply_override(content, override)
    try:
        data = DataConfig.model_validate(content)
    except ValidationError as error:
        raise CommandError(f"{source}: {describe(error)}") from None
    recognised = open_data(data).recognise()
    if recognised and recognised.form in ("pairwise", "hh", "unpaired") and data.chosen is data.rejected is None:
        # Nobody said which preferences they are data of; their own names do to look at them.
        return data.model_copy(update={"chosen": "chosen", "rejected": "rejected"})
    return data


def _measure(base: str | None) -> Measure:
    from meet_training.data.measure import Words, tokens_of

    if base is None:
        return Words()
    from meet_training.base_model import check_causal_model, resolve_base

    folder = resolve_base(base, on_step=tell_step)
    check_causal_model(folder)
    return tokens_of(folder, base)


def _headings(inspection: Inspection) -> list[str]:
    lines = []
    for data in inspection.data:
        lines.append(f"{data.source}: {data.rows} rows, form {data.form}, since {data.why}")
        if data.bad_rows:
            lines.append(f"  {data.bad_rows} bad rows are left out, the first: {data.first_bad_row}")
    lines.append("  if that is wrong: --form=FORM, --columns.prompt=NAME (in a configuration --data.0.form=FORM)")
    return lines


def _table(inspection: Inspection) -> Table:
    from rich.table import Table

    table = Table(caption=f"lengths in {inspection.unit}: median | 90% | longest")
    table.add_column("preference")
    for heading in ("examples", "taken", "prompt and reply", "supervised", "too long", "pairs", "could pair"):
        table.add_column(heading, justify="right")
    if any(figures.pairs_taken is not None for figures in inspection.preferences.values()):
        table.add_column("pairs taken", justify="right")
    for label, figures in inspection.preferences.items():
        table.add_row(label, *_cells(figures), style="red" if not figures.examples else None)
    return table


def _cells(figures: PreferenceFigures) -> list[str]:
    spans = [f"{one.p50} | {one.p90} | {one.max}" if one else "-" for one in (figures.whole, figures.supervised)]
    too_long = "-" if figures.too_long is None else str(figures.too_long)
    pairs = [str(figures.pairs), str(figures.could_pair)]
    taken = [] if figures.pairs_taken is None else [str(figures.pairs_taken)]
    return [str(figures.examples), str(figures.taken), *spans, too_long, *pairs, *taken]


def _remarks(inspection: Inspection) -> list[str]:
    labels = ", ".join(f"{label} {num}" for label, num in inspection.labels.items())
    lines = [f"labels: {labels}; replies that are data of no preference: {inspection.not_wanted}"]
    if inspection.unit == "words":
        lines.append("give --base MODEL for lengths in tokens, and the example as the model sees it")
    if inspection.max_length is not None:
        lines.append(f"too long: over max_length = {inspection.max_length}, left out by training")
    lines.append(
        f"duplicates: {inspection.duplicates} examples occur again, {inspection.in_several} replies are data of "
        f"several preferences"
    )
    if (test := inspection.test) is not None:
        lines.append(
            f"test: {test.prompts_in_both} of its {test.rows} rows have a prompt that is in the data, "
            f"{test.replies_in_both} the same reply too"
        )
    return lines


def _show_example(console: Console, inspection: Inspection) -> None:
    from rich.text import Text

    colour = console.color_system is not None and not console.no_color
    how = "in green" if colour else f"between {' and '.join(MARKS)}"
    console.print(f"\nthe first example, of {inspection.example_preference!r}; supervised is what stands {how}:")
    text = Text()
    for segment in inspection.example:
        if segment.supervised and colour:
            text.append(segment.text, style="bold green")
        elif segment.supervised:
            text.append(f"{MARKS[0]}{segment.text}{MARKS[1]}")
        else:
            text.append(segment.text)
    console.print(text, soft_wrap=True)
    if inspection.example_rejected is not None:
        console.print(Text(f"preferred to: {inspection.example_rejected}"), soft_wrap=True)
