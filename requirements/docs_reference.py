"""Writes docs/reference from the code: `python requirements/docs_reference.py [FOLDER]`. A test compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from reference_http import http
from reference_python import python
from reference_tables import field_table

from meet_cli.main import cli
from meet_server.settings import Settings
from meet_training import TrainConfig
from meet_training.data.generate_config import GenerateConfig
from meet_training.evaluation.evaluation_config import EvaluationConfig
from meet_training.rivals.compare_config import CompareConfig

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
        "meet eval": EvaluationConfig,
        "meet compare": CompareConfig,
        "meet serve": Settings,
    }
    parts = [f"\n## {name}\n\n{field_table(model)}\n" for name, model in sections.items()]
    return HEADER + "# Configuration\n" + "".join(parts)


def main(folder: Path) -> None:
    """Writes every page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.md").write_text(commands())
    (folder / "configuration.md").write_text(configuration())
    (folder / "http.md").write_text(http(HEADER))
    (folder / "python.md").write_text(python(HEADER))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
