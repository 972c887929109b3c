"""Which form data has, told by the columns of its first row, and what a person does who knows better.

Reads nothing and turns no row into an example. A form that the configuration names is not doubted here.
"""

from __future__ import annotations

from dataclasses import dataclass

from meet_training.data.attributes import ATTRIBUTES
from meet_training.data.conversations import is_dialogue
from meet_training.data.sources import Row
from meet_training.data_config import FORMS, USUAL_NAMES, DataConfig, Form
from meet_training.errors import TrainingError

OPTIONS: dict[Form, tuple[str, ...]] = {
    "pointwise": ("labels", "separator", "supervise"),
    "pairwise": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "unpaired": ("chosen", "rejected", "supervise"),
    "scored": ("levels", "supervise"),
}
"""Which options a form understands. Pairs differ in their last reply alone, so no other one is learned."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which field of a row holds what."""

    prompt: str
    messages: str
    reply: str
    preference: str
    chosen: str
    rejected: str
    tools: str


@dataclass(frozen=True, slots=True)
class Recognised:
    """The form of a data set, its columns, and what told."""

    form: Form
    columns: Columns
    why: str


def recognise(data: DataConfig, first: Row, *, labelled: bool = True) -> Recognised:
    """The form of the data whose first row this is. Without `labelled` a row needs no preference.

    Raises TrainingError that names file, line, columns and forms where none fits, or where an option is given
    that the form has no use for.
    """
    columns = columns_of(data, first)
    if data.form != "auto":
        form, why = data.form, "as the configuration says"
    else:
        form, why = _told_by(data, first, columns, labelled=labelled)
    if labelled:
        _check_options(data, form)
    return Recognised(form, columns, why)


def columns_of(data: DataConfig, first: Row) -> Columns:
    """The columns that the configuration names; of the others, the first usual name that the row has."""
    named = data.columns.model_dump(exclude_none=True)
    usual = {
        what: next((name for name in names if name in first.fields), names[0]) for what, names in USUAL_NAMES.items()
    }
    return Columns(**(usual | named))


def _told_by(data: DataConfig, first: Row, columns: Columns, *, labelled: bool) -> tuple[Form, str]:
    fields = first.fields
    if data.levels is not None:
        return "scored", "`levels` are given"
    if columns.chosen in fields and columns.rejected in fields:
        names = f"it has the columns {columns.chosen!r} and {columns.rejected!r}"
        if columns.prompt not in fields and is_dialogue(fields[columns.chosen]):
            return "hh", f"{names}, and a chosen one starts with 'Human:'"
        return "pairwise", names
    if isinstance(fields.get(columns.preference), bool):
        return "unpaired", f"its column {columns.preference!r} holds true or false"
    if columns.preference in fields:
        return "pointwise", f"it has the column {columns.preference!r}"
    if not labelled and (columns.reply in fields or columns.messages in fields):
        return "pointwise", f"it has the column {columns.reply if columns.reply in fields else columns.messages!r}"
    raise TrainingError(
        f"{first.file}:{first.number}: no form fits its columns {', '.join(fields) or '(none)'}; needed are "
        f"{columns.chosen!r} and {columns.rejected!r} (pairwise, hh), or a reply with {columns.preference!r} "
        f"(pointwise, unpaired), or `levels` (scored); name other columns with `columns`, or the form with `form` "
        f"({', '.join(FORMS)})"
    )


def _check_options(data: DataConfig, form: Form) -> None:
    known = OPTIONS[form]
    for name in ("labels", "separator", "chosen", "rejected", "levels", "supervise"):
        default = type(data).model_fields[name].get_default(call_default_factory=True)
        if name not in known and getattr(data, name) != default:
            raise TrainingError(
                f"{data.source}: {name} means nothing for the form {form}, which understands {', '.join(known)}"
            )
    measured = data.levels.attribute if data.levels else None
    if measured is not None and measured not in ATTRIBUTES:
        raise TrainingError(
            f"{data.source}: levels.attribute: {measured!r} is not measured; the attributes are {', '.join(ATTRIBUTES)}"
        )
    if "chosen" in known and data.chosen is None and data.rejected is None:
        raise TrainingError(
            f"{data.source}: say with `chosen` and `rejected` which preference its replies are data of (form {form})"
        )
