"""The reference of the Python interfaces: every public name of three packages, with its signature and docstring."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from reference_tables import field_table, prose

PACKAGES = {
    "meet_bundle": "The bundle: open it, check it, write one. Loads no torch.",
    "meet_training": "Train, and use what was trained. [Train from Python](../PYTHON.md) shows it in use.",
    "meet_client": "Ask a server. A distribution of its own, on the `openai` SDK alone.",
}
_BUILT_IN = object()


def python(header: str) -> str:
    """The page."""
    parts = [f"{header}# Python\n\nThe names that a release keeps. What is not here may change without notice.\n"]
    for package, what in PACKAGES.items():
        module = importlib.import_module(package)
        parts.append(f"\n## {package}\n\n{what}\n")
        parts += [entry(name, getattr(module, name), module) for name in sorted(module.__all__, key=str.lower)]
    return "".join(parts)


def entry(name: str, value: Any, module: ModuleType) -> str:
    """One public name."""
    if inspect.isclass(value):
        return class_entry(value, module)
    if inspect.isfunction(value):
        return f"\n### {name}\n\n{code(f'{called(name, value)}{signature(value)}')}\n{prose(value)}\n"
    if isinstance(value, str | int):
        return f"\n### {name}\n\n{code(f'{name} = {value!r}')}"
    return f"\n### {name}\n\n{code(f'{name} = {alias(value)}')}"


def class_entry(cls: type, module: ModuleType) -> str:
    """A class: how it is made, its fields where it is a model, and its methods and properties."""
    title = f"\n### {cls.__name__}\n\n"
    if issubclass(cls, BaseModel):
        return f"{title}{prose(cls)}\n\n{field_table(cls, nested=False)}\n{members(cls, module)}"
    if issubclass(cls, Exception):
        return f"{title}{code(f'class {cls.__name__}({cls.__bases__[0].__name__})')}\n{prose(cls)}\n"
    made = f"class {cls.__name__}{fields_of(cls) if dataclasses.is_dataclass(cls) else init(cls)}"
    return f"{title}{code(made)}\n{prose(cls)}\n{members(cls, module)}"


def init(cls: type) -> str:
    """The arguments that it is made with, none where the class has no constructor of its own."""
    own = cls.__dict__.get("__init__", _BUILT_IN)
    return "" if own is _BUILT_IN else signature(own).removesuffix(" -> None")


def fields_of(cls: Any) -> str:
    """The fields of a dataclass as arguments."""
    shown = []
    for each in dataclasses.fields(cls):
        has_default = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        default = f" = {each.default!r}" if each.default is not dataclasses.MISSING else " = ..." if has_default else ""
        shown.append(f"{each.name}: {annotation(each.type)}{default}")
    return f"({', '.join(shown)})"


def members(cls: type, module: ModuleType) -> str:
    """Methods and properties of the class and of those of ours above it, in the order of their definition."""
    ours = [each for each in reversed(cls.__mro__) if each.__module__.startswith(module.__name__)]
    found: dict[str, Any] = {}
    for each in ours:
        found |= {name: value for name, value in vars(each).items() if not name.startswith("_")}
    lines = [line for name, value in found.items() for line in member(name, value)]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def member(name: str, value: Any) -> Iterator[str]:
    """One method or property, as an item of a list."""
    if isinstance(value, property):
        yield f"- `{name}` {flat(value)}".rstrip()
    elif isinstance(value, classmethod | staticmethod):
        yield f"- `{name}{signature(value.__func__)}` {flat(value.__func__)}".rstrip()
    elif inspect.isfunction(value):
        yield f"- `{called(name, value)}{signature(value)}` {flat(value)}".rstrip()


def called(name: str, function: Any) -> str:
    """The name, and whether it is awaited."""
    return f"async {name}" if inspect.iscoroutinefunction(function) else name


def signature(function: Callable[..., Any]) -> str:
    """Arguments and result, as they are written in the source."""
    shown, starred = [], False
    found = inspect.signature(function)
    for each in found.parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        prefix = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        text = f"{prefix}{each.name}"
        if each.annotation is not each.empty:
            text += f": {annotation(each.annotation)}"
        if each.default is not each.empty:
            text += f" = {default(each.default)}"
        shown.append(text)
    returned = found.return_annotation
    result = "" if returned is found.empty else f" -> {annotation(returned)}"
    return f"({', '.join(shown)}){result}"


def annotation(value: Any) -> str:
    """As written; names of modules left out."""
    text = value if isinstance(value, str) else value.__name__ if inspect.isclass(value) else str(value)
    return re.sub(r"[A-Za-z_]+[.](?=[A-Za-z_])", "", text)


def default(value: Any) -> str:
    """A default, without the address that a plain object's repr has."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return "..." if " at 0x" in repr(value) else repr(value)


def alias(value: Any) -> str:
    """What a type's other name stands for, or which member of an enumeration it is."""
    return default(value) if isinstance(value, Enum) else annotation(value)


def flat(value: Any) -> str:
    """The docstring on one line."""
    return " ".join(prose(value).split())


def code(text: str) -> str:
    """A block of Python, its arguments on lines of their own where one line is too long."""
    if len(text) > 100 and "(" in text:
        head, _, rest = text.partition("(")
        inside, _, tail = rest.rpartition(")")
        text = f"{head}(\n    " + ",\n    ".join(split(inside)) + f",\n){tail}"
    return f"```python\n{text}\n```\n"


def split(arguments: str) -> list[str]:
    """The arguments, at the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
