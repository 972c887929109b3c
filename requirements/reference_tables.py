"""Tables of the reference: the fields of a pydantic model, those of its sections among them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def field_table(model: type[BaseModel], *, nested: bool = True) -> str:
    """One row a field, and one for each field of a model in it if `nested`."""
    found = [row for row in rows(model, "") if nested or "." not in row[0]]
    lines = [f"| `{path}` | {kind} | {default} | {meaning} |" for path, kind, default, meaning in found]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *lines])


def rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of each field, sections in sections."""
    for name, field in model.model_fields.items():
        below = [each for each in parts_of(field.annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
        yield f"{prefix}{name}", type_of(field.annotation), default_of(field, below), escaped(field.description or "")
        for each in below:
            yield from rows(each, f"{prefix}{name}.")


def parts_of(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    inside = get_args(annotation)
    return [annotation] if not inside else [part for each in inside for part in parts_of(each)]


def type_of(annotation: Any) -> str:
    """The annotation as code."""
    return f"`{escaped(type_name(annotation))}`"


def type_name(annotation: Any) -> str:
    """The annotation without the names of modules, and without what only pydantic reads."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(inside[0])
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, inside))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inside))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, inside))}]"
    if annotation in (None, type(None), ...):
        return "..." if annotation is ... else "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).rpartition(".")[2]


def default_of(field: FieldInfo, below: list[type[BaseModel]]) -> str:
    """The default, where it says more than that of what is below."""
    if field.is_required():
        return "needed"
    return "" if below else f"`{escaped(str(field.get_default(call_default_factory=True)))}`"


def escaped(text: str) -> str:
    """As a table's cell has it."""
    return text.replace("|", "\\|").replace("\n", " ")


def prose(value: Any) -> str:
    """The docstring; what is indented in it stays as it is."""
    return inspect.getdoc(value) or ""
