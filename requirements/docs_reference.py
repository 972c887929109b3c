"""Writes docs/reference from the code: `python requirements/docs_reference.py [FOLDER]`. A test compares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from meet_cli.main import cli
from meet_server.settings import Settings
from meet_training import TrainConfig
from meet_training.data.generate_config import GenerateConfig

HEADER = "<!-- written by requirements/docs_reference.py; `make docs` writes it anew -->\n\n"


def commands() -> str:
    """Every command with its help, as `--help` prints it."""
    with click.Context(cli, info_name="meet", max_content_width=100, terminal_width=100) as context:
        parts = [help_of(each) for each in walk(cli, context)]
    return HEADER + "# Commands\n\n" + "\n".join(parts)


def walk(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """The contexts of a command and of those below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                width = {"max_content_width": 100, "terminal_width": 100}
                yield from walk(below, click.Context(below, info_name=name, parent=context, **width))


def help_of(context: click.Context) -> str:
    """One section."""
    return f"## {context.command_path}\n\n```text\n{context.command.get_help(context)}\n```\n"


def configuration() -> str:
    """Every configuration, field by field."""
    sections = {
        "meet train": TrainConfig,
        "meet data generate": GenerateConfig,
        "meet serve": Settings,
    }
    parts = [HEADER + "# Configuration\n"]
    for name, model in sections.items():
        parts.append(f"\n## {name}\n\n| field | type | default | meaning |\n|---|---|---|---|")
        parts += [f"| `{path}` | {kind} | {default} | {meaning} |" for path, kind, default, meaning in rows(model, "")]
    return "\n".join(parts) + "\n"


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
    """The annotation without the names of modules."""
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return f"`{escaped(re.sub(r'[A-Za-z_]+[.](?=[A-Za-z_])', '', text))}`"


def default_of(field: FieldInfo, below: list[type[BaseModel]]) -> str:
    """The default, where it says more than that of what is below."""
    if field.is_required():
        return "needed"
    return "" if below else f"`{escaped(str(field.get_default(call_default_factory=True)))}`"


def escaped(text: str) -> str:
    """As a table's cell has it."""
    return text.replace("|", "\\|").replace("\n", " ")


def main(folder: Path) -> None:
    """Writes both pages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.md").write_text(commands())
    (folder / "configuration.md").write_text(configuration())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
